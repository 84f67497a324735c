package natscatalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
)

// Error codes of the JetStream API that package jetstream has no name for.
const (
	codeInsufficientResources jetstream.ErrorCode = 10023
	codeNoPeers               jetstream.ErrorCode = 10005
	codeStorageExceeded       jetstream.ErrorCode = 10047
	codeReplicasNotSupported  jetstream.ErrorCode = 10074
	codeMaxBytes              jetstream.ErrorCode = 10077
)

// classes maps what a JetStream server answers to the classes of ckptd;
// every other code means that the store cannot serve now.
var classes = map[jetstream.ErrorCode]error{
	jetstream.JSErrCodeStreamWrongLastSequence:         catalog.ErrConflict,
	jetstream.JSErrCodeStreamWrongLastSequenceConstant: catalog.ErrConflict,
	jetstream.JSErrCodeStreamMessageExceedsMaximum:     catalog.ErrInvalid,
	codeInsufficientResources:                          catalog.ErrNoSpace,
	codeStorageExceeded:                                catalog.ErrNoSpace,
	codeMaxBytes:                                       catalog.ErrNoSpace,
}

// classify gives err a class. The caller's own context stays visible: a
// canceled call is context.Canceled, a deadline of either side is ErrUnavailable too.
func classify(ctx context.Context, err error) error {
	switch {
	case err == nil || catalog.ClassOf(err) != nil:
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		if class := classes[api.ErrorCode]; class != nil {
			return fmt.Errorf("%w: %s", class, api.Description)
		}
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %w", catalog.ErrInvalid, err)
	}
	return fmt.Errorf("%w: %w", catalog.ErrUnavailable, err)
}
