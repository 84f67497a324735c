package traffic

import (
	"context"
	"fmt"
)

// Class is what bytes move for. The smaller, the more urgent. The numbers are
// part of the protocol between clients and targets.
type Class uint8

const (
	Unset   Class = iota // who moves the bytes decides
	Restore              // a job waits for them to start
	Dataset              // a job waits for its next samples
	Drain                // what is written becomes safe
	Repair               // what was lost becomes safe again
	Scrub                // looking for damage
)

// Classes bounds the values of a Class.
const Classes = int(Scrub) + 1

var names = [Classes]string{"unset", "restore", "dataset", "drain", "repair", "scrub"}

func (c Class) String() string {
	if int(c) < Classes {
		return names[c]
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Or is c, or other where c is not set.
func (c Class) Or(other Class) Class {
	if c == Unset {
		return other
	}
	return c
}

type key struct{}

// WithClass says what everything done with the context is for.
func WithClass(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, key{}, c)
}

// ClassOf is what WithClass said last; Unset if nobody did.
func ClassOf(ctx context.Context) Class {
	c, _ := ctx.Value(key{}).(Class)
	return c
}

// Default says that a context is for c, unless it is for something already.
func Default(ctx context.Context, c Class) context.Context {
	if ClassOf(ctx) != Unset {
		return ctx
	}
	return WithClass(ctx, c)
}
