package main

import (
	"errors"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func TestMountFlag(t *testing.T) {
	for spec, want := range map[string]wire.MountRequest{
		"/mnt":                            {Dir: "/mnt"},
		"/mnt/../a b":                     {Dir: "/a b"},
		"/mnt,ahead=8,retries=2":          {Dir: "/mnt", Ahead: 8, Retries: 2},
		"/mnt,checked":                    {Dir: "/mnt", Checked: true},
		"/mnt,allow-other,no-passthrough": {Dir: "/mnt", AllowOther: true, NoPassthrough: true},
	} {
		if got, err := parseMount(spec, wire.MountRequest{}); err != nil || got != want {
			t.Errorf("parseMount(%q) = %+v, %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"", ",checked", "/mnt,fast", "/mnt,checked=1", "/mnt,ahead", "/mnt,ahead=65", "/mnt,retries=-1", "/mnt,ahead=0"} {
		if _, err := parseMount(spec, wire.MountRequest{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("parseMount(%q): %v, want ErrInvalid", spec, err)
		}
	}
}
