// Package bucket is the S3 client that ckptd needs: objects below a prefix of a
// bucket, written in parts and read in ranges.
//
//  1. An object appears when Complete or Put returns nil, whole, and in place of
//     an earlier one of its name; an Upload that is abandoned leaves nothing.
//  2. Every object and part is sent with its CRC32C, which the server compares
//     before it keeps it. What is read is for the caller to check; a range of an
//     object can be asked for on the condition that it is still the same.
//  3. What passes (a busy server, a broken connection, no answer) is tried again:
//     Options.Tries times, for Options.Patience, with growing random pauses, and
//     out of a budget that all requests of a Bucket share, so that a server that
//     is down is not asked over and over. A read goes on from where it was cut.
//  4. Errors have the classes of package catalog, from one table, and say what
//     to do.
//  5. Credentials come from where other tools look: the environment (AWS_…,
//     MINIO_…), ~/.aws/credentials with AWS_PROFILE, a web identity, and the
//     machine's own role. They are never in a Spec, which people print.
package bucket
