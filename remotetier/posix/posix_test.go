package posix_test

import (
	"testing"

	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/posix"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

func open(t *testing.T, fsys vfs.FS, dir string) *posix.Target {
	t.Helper()
	if err := fsys.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	p, err := posix.Open(t.Context(), fsys, dir, "p1", posix.Options{Trace: func(err error) { t.Errorf("trace: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	t.Run("OS", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target { return open(t, vfs.OS, t.TempDir()) })
	})
	t.Run("Mem", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target { return open(t, vfstest.New(vfstest.Options{}), "/p") })
	})
	t.Run("NoDirect", func(t *testing.T) {
		targettest.Run(t, func(t *testing.T) remotetier.Target {
			return open(t, vfstest.New(vfstest.Options{NoDirect: true}), "/p")
		})
	})
}
