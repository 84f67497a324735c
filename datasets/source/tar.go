package source

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ckptd/ckptd/catalog"
)

const (
	maxRatio  = 250       // times as many bytes as the compressed file has …
	ratioFree = 1 << 30   // … beyond the first GiB
	maxWindow = 128 << 20 // bytes of zstd's memory
)

// tars is one tar, or several as one dataset.
type tars struct {
	files  []string // in order; "-" is opt.Stdin
	bytes  int64
	opt    Options
	format Format
	kinds  kinds

	skipped atomic.Int64
}

func (t *tars) Facts() Facts {
	return Facts{Format: t.format, Stream: true, Bytes: t.bytes, Schema: t.kinds.schema(t.format), Skipped: t.skipped.Load()}
}

func (t *tars) Close() error { return nil }

// Items gives the members in their order. Those of several tars are in a folder
// for each, by its name without endings, since their names may be the same.
func (t *tars) Items(ctx context.Context) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		for _, name := range t.files {
			folder := ""
			if len(t.files) > 1 {
				folder = tarStem(filepath.Base(name))
				if !yield(&Item{Path: folder, Kind: Folder, Mode: 0o755}, nil) {
					return
				}
			}
			err := t.one(ctx, name, folder, func(it *Item) bool { return yield(it, nil) })
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read %s: %w", name, err))
				return
			}
		}
	}
}

var errStopped = errors.New("source: the caller stopped")

// tarStem drops the endings of a tar's name.
func tarStem(base string) string {
	for _, end := range tarEndings {
		if stem, ok := strings.CutSuffix(base, end); ok && stem != "" {
			return stem
		}
	}
	return base
}

var tarEndings = []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"}

// one reads one tar.
func (t *tars) one(ctx context.Context, name, folder string, yield func(*Item) bool) error {
	raw := t.opt.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return bare(err)
		}
		defer f.Close()
		raw = f
	}
	r, closer, err := decompress(raw)
	if err != nil {
		return err
	}
	defer closer()
	m := members{t: t, folder: folder, seed: maphash.MakeSeed(), seed2: maphash.MakeSeed(), seen: make(map[[2]uint64]nameIs)}
	tr := tar.NewReader(r)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return m.end()
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return tarError(err)
		}
		it, err := m.item(h, tr)
		if err != nil {
			return fmt.Errorf("member %.200q: %w", h.Name, err)
		}
		if it != nil && len(m.special) == 0 && !yield(it) {
			return errStopped
		}
	}
}

// tarError gives archive errors their class.
func tarError(err error) error {
	if catalog.ClassOf(err) != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if p := new(os.PathError); errors.As(err, &p) {
		return err
	}
	return fmt.Errorf("%w: not a whole tar: %w", catalog.ErrCorrupt, err)
}

// nameIs says what a name was.
type nameIs uint8

const (
	seenFile nameIs = iota + 1
	seenFolder
	seenLink
	seenKey // of a sample
)

// members turns headers into items, and remembers names by 16 bytes each.
type members struct {
	t           *tars
	folder      string
	seed, seed2 maphash.Seed
	seen        map[[2]uint64]nameIs
	key         string // of the sample at hand
	special     []string
}

func (m *members) name(s string) [2]uint64 {
	return [2]uint64{maphash.String(m.seed, s), maphash.String(m.seed2, s)}
}

func (m *members) item(h *tar.Header, r io.Reader) (*Item, error) {
	clean, err := cleanPath(h.Name)
	if err != nil {
		return nil, err
	}
	it := &Item{Path: clean, Mode: uint32(h.Mode) & 0o7777, Mtime: h.ModTime}
	what := seenLink
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil, nil
	case tar.TypeReg, tar.TypeCont:
		what = seenFile
		if sparse(h) {
			return nil, invalid("a sparse file; pack it without --sparse")
		}
		it.Size = h.Size
		it.Open = func() (io.ReadCloser, error) { return io.NopCloser(&memberReader{r: r, left: h.Size}), nil }
	case tar.TypeGNUSparse:
		return nil, invalid("a sparse file; pack it without --sparse")
	case tar.TypeLink:
		what = seenFile
		same, err := cleanPath(h.Linkname)
		if err != nil {
			return nil, fmt.Errorf("hard link: %w", err)
		}
		if m.seen[m.name(same)] != seenFile {
			return nil, corrupt("a hard link to %.200q, which is no file before it", same)
		}
		it.Same = join(m.folder, same)
	case tar.TypeDir:
		it.Kind, what = Folder, seenFolder
	case tar.TypeSymlink:
		it.Kind, it.Target = Link, h.Linkname
		if h.Linkname == "" || len(h.Linkname) > MaxTarget || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, corrupt("a symlink to %.200q", h.Linkname)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		m.t.skipped.Add(1)
		if !m.t.opt.SkipSpecial {
			m.special = append(m.special, fmt.Sprintf("%.500q", h.Name))
			if len(m.special) > maxListed {
				return nil, refuse(m.special)
			}
		}
		return nil, nil
	default:
		return nil, invalid("type %q of a member is not known", h.Typeflag)
	}
	if clean == "" && it.Kind != Folder {
		return nil, corrupt("a %v without a name", it.Kind)
	}
	if again, err := m.once(clean, it.Kind, what); err != nil || again {
		return nil, err
	}
	it.Path = join(m.folder, clean)
	if clean == "" {
		it.Path = m.folder
		if m.folder != "" {
			return nil, nil // the folder was given already
		}
	}
	return it, m.group(it, clean)
}

// once refuses a second member of a name. Folders may come again: archives that
// were appended to have them twice, and the first one counts.
func (m *members) once(clean string, kind Kind, what nameIs) (again bool, err error) {
	name := m.name(clean)
	before, ok := m.seen[name]
	if !ok {
		m.seen[name] = what
		return false, nil
	}
	if kind == Folder && before == seenFolder {
		return true, nil
	}
	return false, corrupt("the archive has two members of this name; pack it anew")
}

// group gives the item its sample.
func (m *members) group(it *Item, clean string) error {
	if it.Kind != File {
		m.key = ""
		return nil
	}
	if m.t.format != WebDataset {
		return nil
	}
	key, field, ok := stemOf(clean)
	if !ok {
		it.NoSample = true
		return nil
	}
	m.t.kinds.add(field, field)
	it.Sample = join(m.folder, key)
	if key == m.key {
		return nil
	}
	m.key = key
	name := m.name("\x00" + key)
	if _, ok := m.seen[name]; ok {
		return invalid("the members of sample %.200q do not stand together; pack them in the order of their names (tar --sort=name), or import with --format tar", key)
	}
	m.seen[name] = seenKey
	return nil
}

func (m *members) end() error {
	if len(m.special) > 0 {
		return refuse(m.special)
	}
	return nil
}

func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// memberReader gives a member's bytes, all of them or an error.
type memberReader struct {
	r    io.Reader
	left int64
}

func (m *memberReader) Read(p []byte) (int, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	if err == io.EOF && m.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err == io.EOF {
		err = nil
	}
	if err != nil {
		err = tarError(err)
	}
	return n, err
}

// counted counts what was read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// bounded ends an archive that grows beyond reason while it is unpacked.
type bounded struct {
	r   io.Reader
	in  *counted
	out int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.out += int64(n)
	if b.out > ratioFree && b.out/maxRatio > b.in.n {
		return 0, invalid("%d bytes came out of %d: more than %d times as much; if that is right, unpack it first", b.out, b.in.n, maxRatio)
	}
	return n, err
}

// magic is what a stream begins with.
func magic(head []byte) (gz, zst, isTar bool) {
	return len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b,
		len(head) >= 4 && string(head[:4]) == "\x28\xb5\x2f\xfd",
		len(head) >= 262 && string(head[257:262]) == "ustar"
}

// decompress looks at the first bytes and unpacks what is packed. A name's
// ending says nothing.
func decompress(raw io.Reader) (io.Reader, func(), error) {
	in := &counted{r: raw}
	buf := newPeeker(in)
	gz, zst, _ := magic(buf.head())
	switch {
	case gz:
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, nil, tarError(err)
		}
		return &bounded{r: z, in: in}, func() { z.Close() }, nil
	case zst:
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, tarError(err)
		}
		return &bounded{r: z, in: in}, z.Close, nil
	}
	return buf, func() {}, nil
}
