package bucket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

// classes is the one table from the codes of S3 to the classes of package
// catalog; a code that is not here is judged by the status.
var classes = map[string]error{
	"NoSuchKey":    fs.ErrNotExist,
	"NoSuchUpload": fs.ErrNotExist,
	"NoSuchBucket": catalog.ErrInvalid,

	"AccessDenied":                 catalog.ErrInvalid,
	"AllAccessDisabled":            catalog.ErrInvalid,
	"InvalidAccessKeyId":           catalog.ErrInvalid,
	"SignatureDoesNotMatch":        catalog.ErrInvalid,
	"RequestTimeTooSkewed":         catalog.ErrInvalid,
	"AuthorizationHeaderMalformed": catalog.ErrInvalid,

	"PreconditionFailed":         catalog.ErrConflict,
	"OperationAborted":           catalog.ErrConflict,
	"ConditionalRequestConflict": catalog.ErrConflict,

	"QuotaExceeded":                  catalog.ErrNoSpace,
	"StorageFull":                    catalog.ErrNoSpace,
	"XMinioStorageFull":              catalog.ErrNoSpace,
	"XMinioAdminBucketQuotaExceeded": catalog.ErrNoSpace,

	"BadDigest":                   catalog.ErrUnavailable, // damaged on its way
	"XAmzContentChecksumMismatch": catalog.ErrUnavailable,
	"IncompleteBody":              catalog.ErrUnavailable,
	"InvalidPart":                 catalog.ErrUnavailable,
}

// advice says what to do about some codes.
var advice = map[string]string{
	"NoSuchBucket":          "make the bucket first, or name another",
	"AccessDenied":          "the credentials have no right to it",
	"InvalidAccessKeyId":    "the server does not know this AWS_ACCESS_KEY_ID",
	"SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong, or region= is",
	"RequestTimeTooSkewed":  "this machine's clock is wrong",
}

// classOf gives a server's answer its class.
func classOf(e minio.ErrorResponse) error {
	if c, ok := classes[e.Code]; ok {
		return c
	}
	switch {
	case e.StatusCode == http.StatusNotFound:
		return fs.ErrNotExist
	case e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden || e.StatusCode == http.StatusBadRequest:
		return catalog.ErrInvalid
	case e.StatusCode == http.StatusConflict || e.StatusCode == http.StatusPreconditionFailed:
		return catalog.ErrConflict
	case e.StatusCode == http.StatusInsufficientStorage:
		return catalog.ErrNoSpace
	}
	return catalog.ErrUnavailable // busy, broken, or no answer at all
}

// fail wraps an error of the library.
func (b *Bucket) fail(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	where := b.spec.String()
	if name != "" {
		where = name + " in " + where
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s %s: %w", verb, where, err)
	}
	e := minio.ToErrorResponse(err)
	text := err.Error()
	if a := advice[e.Code]; a != "" {
		text += ": " + a
	}
	return fmt.Errorf("%s %s: %w: %s", verb, where, classOf(e), text)
}
