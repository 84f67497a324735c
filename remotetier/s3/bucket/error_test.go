package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7"
	minioCreds "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ckptd/ckptd/catalog"
)

// TestErrors: every answer of a server has a class, the same through fail, and
// what must not be tried again is not.
func TestErrors(t *testing.T) {
	b := &Bucket{creds: &chain{creds: minioCreds.NewStaticV4("AKIAEXAMPLE", "secret", "")}}
	rows := map[error]rule{
		io.ErrUnexpectedEOF: busy, syscall.ECONNRESET: busy, errCut: busy,
		fmt.Errorf("wrapped: %w", catalog.ErrCorrupt):              {class: catalog.ErrCorrupt},
		minio.ErrorResponse{Code: "ATeapot", StatusCode: 418}:      {class: catalog.ErrUnavailable},
		minio.ErrorResponse{Code: "OfThisServer", StatusCode: 507}: full,
	}
	for code, r := range byCode {
		rows[minio.ErrorResponse{Code: code, StatusCode: 400}] = r
	}
	for status, r := range byStatus {
		rows[minio.ErrorResponse{Code: "OfThisServer", StatusCode: status}] = r
	}
	for err, want := range rows {
		if got := ruleOf(err); got.class != want.class || got.again != want.again {
			t.Errorf("%v: class %v, again %v; want %v, %v", err, got.class, got.again, want.class, want.again)
		}
		told := b.fail("put", "a", err)
		if !errors.Is(told, want.class) || catalog.ClassOf(told) == nil || !errors.Is(told, err) {
			t.Errorf("%v is told as %v, of class %v", err, told, catalog.ClassOf(told))
		}
		if want.hint == hintCredentials && (!strings.Contains(told.Error(), "AWS_ACCESS_KEY_ID") || !strings.Contains(told.Error(), "AKIA…") || strings.Contains(told.Error(), "secret;")) {
			t.Errorf("%v does not say which credentials were used: %v", err, told)
		}
		if want.again && want.class != catalog.ErrUnavailable && want.class != catalog.ErrConflict {
			t.Errorf("%v is tried again, and of class %v", err, want.class)
		}
	}
	for code, class := range map[string]error{
		"NoSuchKey": fs.ErrNotExist, "NoSuchBucket": catalog.ErrInvalid, "AccessDenied": catalog.ErrInvalid, "SlowDown": catalog.ErrUnavailable,
		"QuotaExceeded": catalog.ErrNoSpace, "EntityTooLarge": catalog.ErrNoSpace, "PreconditionFailed": ErrTaken, "InvalidRange": catalog.ErrCorrupt,
	} {
		if got := ruleOf(minio.ErrorResponse{Code: code}).class; got != class {
			t.Errorf("%s: %v, want %v", code, got, class)
		}
	}
	if err := b.fail("put", "a", context.Canceled); !errors.Is(err, context.Canceled) || catalog.ClassOf(err) != nil {
		t.Errorf("a call that was given up: %v", err)
	}
}
