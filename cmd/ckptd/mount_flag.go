package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// mountSyntax is what --mount takes.
const mountSyntax = "DIR[,allow-other][,checked][,no-passthrough][,ahead=PACKS][,retries=TIMES]"

// parseMount reads one --mount; what it does not say is as in base.
func parseMount(spec string, base wire.MountRequest) (wire.MountRequest, error) {
	bad := func(format string, args ...any) (wire.MountRequest, error) {
		return base, fmt.Errorf("%w: %s; want %s", catalog.ErrInvalid, fmt.Sprintf(format, args...), mountSyntax)
	}
	dir, options, _ := strings.Cut(spec, ",")
	if dir == "" {
		return bad("no folder")
	}
	var err error
	if base.Dir, err = filepath.Abs(dir); err != nil {
		return base, err
	}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		if key == "ahead" {
			if base.Ahead, err = strconv.Atoi(value); err != nil || base.Ahead < 1 || base.Ahead > 64 {
				return bad("ahead %q; 1 to 64", value)
			}
			continue
		}
		if key == "retries" {
			if base.Retries, err = strconv.Atoi(value); err != nil || base.Retries < 1 || base.Retries > 100 {
				return bad("retries %q; 1 to 100", value)
			}
			continue
		}
		switch o {
		case "allow-other":
			base.AllowOther = true
		case "checked":
			base.Checked = true
		case "no-passthrough":
			base.NoPassthrough = true
		default:
			return bad("%q is no option of a mount", o)
		}
	}
	return base, nil
}
