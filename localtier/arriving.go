package localtier

import (
	"fmt"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Open opens an ingest's bytes for reading while others are still written: a
// block can be read once Block says that it is there, and is held against the
// sum it was written with; before that it is ErrCorrupt, whatever its bytes.
// The Blob stays readable after Commit and after Close, under a descriptor of
// its own, and its Seal fills as blocks come.
func (in *Ingest) Open() (*Blob, error) {
	f, err := in.t.fsys.Open(in.staging, vfs.Opt{Direct: !in.t.opt.Buffered})
	if err != nil {
		return nil, fmt.Errorf("open ingest of %s: %w", in.name, err)
	}
	in.t.direct(in.d, f)
	// The sums are shared: each is written once, before Block tells of it.
	seal := &catalog.Seal{Name: in.name, Size: in.size, CRCs: in.mu.crcs}
	return &Blob{info: Info{Name: in.name, Size: in.size, Path: in.d.data(in.name), Disk: in.d.dir}, seal: seal, f: f}, nil
}

// Root is what the seal's root will be when every block is written.
func (in *Ingest) Root() catalog.Digest {
	in.mu.Lock()
	defer in.mu.Unlock()
	return (&catalog.Seal{Size: in.size, CRCs: in.mu.crcs}).Root()
}
