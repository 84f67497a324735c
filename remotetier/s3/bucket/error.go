package bucket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

// ErrTaken: there is an object of that name, or another than the one asked
// for. It comes with ErrConflict.
var ErrTaken = fmt.Errorf("%w: the object's condition does not hold", catalog.ErrConflict)

// rule is what an answer of the server means.
type rule struct {
	class error
	again bool   // another try may help
	hint  string // what to do; empty: the server's own words are enough
}

var (
	missing    = rule{class: fs.ErrNotExist}
	taken      = rule{class: ErrTaken}
	full       = rule{class: catalog.ErrNoSpace}
	busy       = rule{class: catalog.ErrUnavailable, again: true}
	damaged    = rule{class: catalog.ErrUnavailable, again: true, hint: "the bytes were damaged on the way"}
	contended  = rule{class: catalog.ErrConflict, again: true}
	elsewhere  = rule{class: catalog.ErrInvalid, hint: "give the bucket's region as region="}
	notAllowed = rule{class: catalog.ErrInvalid, hint: hintCredentials}
)

// hintCredentials stands for where credentials were looked for and what was found.
const hintCredentials = "credentials"

// byCode is the one table from the codes of S3 to classes of package catalog;
// byStatus is for codes that are not here.
var byCode = map[string]rule{
	"NoSuchKey":         missing,
	"NoSuchUpload":      missing,
	"NoSuchBucket":      {class: catalog.ErrInvalid, hint: "make the bucket first, or correct its name"},
	"InvalidBucketName": {class: catalog.ErrInvalid, hint: "a bucket's name is 3 to 63 lower-case letters, digits, dots and dashes"},

	"AccessDenied":          notAllowed,
	"AllAccessDisabled":     notAllowed,
	"AccountProblem":        notAllowed,
	"InvalidAccessKeyId":    notAllowed,
	"SignatureDoesNotMatch": {class: catalog.ErrInvalid, hint: "AWS_SECRET_ACCESS_KEY is wrong, or region= is"},
	"InvalidToken":          notAllowed,
	"ExpiredToken":          busy, // the next try has a new one
	"RequestTimeTooSkewed":  {class: catalog.ErrInvalid, hint: "this machine's clock is wrong; set it"},

	"AuthorizationHeaderMalformed": elsewhere,
	"PermanentRedirect":            elsewhere,
	"InvalidRegion":                elsewhere,
	"MethodNotAllowed":             {class: catalog.ErrInvalid},
	"NotImplemented":               {class: catalog.ErrInvalid, hint: "the server does not know a request that is needed"},
	"InvalidObjectState":           {class: catalog.ErrUnavailable, hint: "the object was moved to an archive; restore it first"},
	"InvalidRange":                 {class: catalog.ErrCorrupt},
	"InvalidPart":                  {class: catalog.ErrUnavailable},

	"PreconditionFailed":         taken,
	"OperationAborted":           contended,
	"ConditionalRequestConflict": contended,

	"QuotaExceeded":                  full,
	"StorageFull":                    full,
	"XMinioStorageFull":              full,
	"XMinioAdminBucketQuotaExceeded": full,
	"EntityTooLarge":                 {class: catalog.ErrNoSpace, hint: "the server takes no objects of this size"},

	"BadDigest":                   damaged,
	"XAmzContentSHA256Mismatch":   damaged,
	"XAmzContentChecksumMismatch": damaged,
	"IncompleteBody":              damaged,

	"RequestTimeout":       busy,
	"SlowDown":             busy,
	"SlowDownRead":         busy,
	"SlowDownWrite":        busy,
	"Throttling":           busy,
	"ThrottlingException":  busy,
	"RequestLimitExceeded": busy,
	"RequestThrottled":     busy,
	"ServiceUnavailable":   busy,
	"InternalError":        busy,
}

var byStatus = map[int]rule{
	400: {class: catalog.ErrInvalid},
	401: notAllowed,
	403: notAllowed,
	404: missing,
	408: busy,
	409: {class: catalog.ErrConflict},
	412: taken,
	416: {class: catalog.ErrCorrupt},
	429: busy,
	499: busy,
	500: busy,
	501: {class: catalog.ErrInvalid, hint: "the server does not know a request that is needed"},
	502: busy,
	503: busy,
	504: busy,
	507: full,
}

// ruleOf says what an error means. One that is no answer is of the way to the
// server, and passes.
func ruleOf(err error) rule {
	var e minio.ErrorResponse
	if !errors.As(err, &e) {
		if class := catalog.ClassOf(err); class != nil {
			return rule{class: class}
		}
		return busy
	}
	if r, ok := byCode[e.Code]; ok {
		return r
	}
	if r, ok := byStatus[e.StatusCode]; ok {
		return r
	}
	return rule{class: catalog.ErrUnavailable}
}

// fail wraps an error of a request with its class, and says what to do.
func (b *Bucket) fail(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	where := b.spec.String()
	if name != "" {
		where = name + " in " + where
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && catalog.ClassOf(err) == nil {
		return fmt.Errorf("%s %s: %w", verb, where, err)
	}
	r := ruleOf(err)
	hint := r.hint
	if hint == hintCredentials {
		hint = b.creds.tried()
	}
	if hint != "" {
		hint = "; " + hint
	}
	if errors.Is(err, r.class) {
		return fmt.Errorf("%s %s: %w%s", verb, where, err, hint)
	}
	return fmt.Errorf("%s %s: %w: %w%s", verb, where, r.class, err, hint)
}
