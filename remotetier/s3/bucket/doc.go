// Package bucket is the S3 client that ckptd needs: objects below a prefix of a
// bucket, written in parts and read in ranges.
//
//  1. An object appears when Complete or Put returns nil, whole, and in place of
//     an earlier one of its name; an Upload that is abandoned leaves nothing.
//  2. Every part goes with its MD5, which the server compares. What is read is
//     for the caller to check.
//  3. Requests are tried again, with backoff and jitter, when the server is busy
//     or the connection breaks: fifteen times, and no longer. A read goes on from
//     where it was cut.
//  4. Errors have the classes of package catalog, from one table.
//  5. Credentials come from where other tools look: AWS_ACCESS_KEY_ID and
//     AWS_SECRET_ACCESS_KEY, ~/.aws/credentials with AWS_PROFILE, and the
//     machine's own role. They are never in a Spec, which people print.
package bucket
