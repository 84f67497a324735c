package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

const (
	hfFile  = "model.safetensors"
	hfIndex = "model.safetensors.index.json"
)

// hfOptions is which tensors go into Hugging Face's layout, and how.
type hfOptions struct {
	only    []string // shell patterns on the names as saved; none: all
	strip   string   // taken off the beginning of names; tensors without it are left out
	maxFile int64    // bytes of tensors in a file; a larger tensor has one to itself
}

// hfTensor is a whole tensor on its way: Spec has the name it will have.
type hfTensor struct {
	from string
	size int64
	spec shardfile.Spec
}

// hfTensors chooses and names the tensors of a set, in the order of their
// first appearance: that of the ranks, and within one of its file.
func hfTensors(r *ckpt.Reader, opt hfOptions) ([]hfTensor, error) {
	var out []hfTensor
	seen, taken := make(map[string]bool), make(map[string]string)
	for _, t := range r.Tensors() {
		name, fits := strings.CutPrefix(t.Name, opt.strip)
		if seen[t.Name] || strings.HasPrefix(t.Name, "ckptd.") || !fits || !matches(opt.only, t.Name) {
			continue
		}
		seen[t.Name] = true
		if other, ok := taken[name]; ok || name == "" {
			return nil, wire.WithHint(fmt.Errorf("%v: without %q, %q and %q have one name: %w", r.ID(), opt.strip, other, t.Name, catalog.ErrInvalid), "choose with --only")
		}
		taken[name] = t.Name
		whole, err := r.Tensor(t.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, hfTensor{t.Name, whole.Size, shardfile.Spec{Name: name, DType: whole.DType, Shape: whole.Shape}})
	}
	if len(out) == 0 {
		err := fmt.Errorf("no tensor of %v has a name that begins with %q and matches %s: %w", r.ID(), opt.strip, or(strings.Join(opt.only, " "), "*"), fs.ErrNotExist)
		return nil, wire.WithHint(err, "`ckpt show %v --tensors` lists the names", r.ID())
	}
	return out, nil
}

func matches(only []string, name string) bool {
	for _, g := range only {
		if ok, _ := path.Match(g, name); ok { // patterns were checked
			return true
		}
	}
	return len(only) == 0
}

// planHF deals tensors out to files in their order, as Hugging Face's own
// writer does: a file is full when the next one would make it larger than most.
func planHF(tensors []hfTensor, most int64) [][]hfTensor {
	var files [][]hfTensor
	size := int64(0)
	for _, t := range tensors {
		if len(files) == 0 || size+t.size > most {
			files, size = append(files, nil), 0
		}
		files[len(files)-1] = append(files[len(files)-1], t)
		size += t.size
	}
	return files
}

// hfNames names the files: one alone has no number.
func hfNames(n int) []string {
	if n == 1 {
		return []string{hfFile}
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n)
	}
	return names
}

// exportHFTo checks what was asked for before the daemon is.
func (a *app) exportHFTo(ctx context.Context, ref, from, dest, maxFile string, opt hfOptions) (err error) {
	if opt.maxFile, err = parseSize(maxFile); err != nil || opt.maxFile <= 0 {
		return usage("--max-file %q: want a size such as 5GiB", maxFile)
	}
	for _, g := range opt.only {
		if _, err := path.Match(g, ""); err != nil {
			return usage("pattern %q: %v", g, err)
		}
	}
	if strings.HasPrefix(dest, bucket.Scheme) {
		return usage("--hf writes into a folder; copy that to the bucket")
	}
	if err := freeDest(dest); err != nil {
		return err
	}
	return a.with(ctx, func(c *ckpt.Client) error { return a.exportHF(ctx, c, ref, from, dest, opt) })
}

// exportHF writes whole tensors into a hidden folder beside dest and renames
// that. It needs the memory of the largest tensor.
func (a *app) exportHF(ctx context.Context, c *ckpt.Client, ref, from, dest string, opt hfOptions) error {
	r, err := c.Open(ctx, ref, ckpt.From(from))
	if err != nil {
		return err
	}
	defer r.Close()
	tensors, err := hfTensors(r, opt)
	if err != nil {
		return err
	}
	total := int64(0)
	for _, t := range tensors {
		total += t.size
	}
	temp, err := hidden(dest, "exporting")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	begin := time.Now()
	p := a.progress("export", total, "bytes")
	defer p.end()
	files := planHF(tensors, opt.maxFile)
	names := hfNames(len(files))
	index := make(map[string]string, len(tensors))
	for i, group := range files {
		for _, t := range group {
			index[t.spec.Name] = names[i]
		}
		if err := create(filepath.Join(temp, names[i]), func(f *os.File) error { return writeHF(ctx, r, f, group, p) }); err != nil {
			return fmt.Errorf("export %v to %s: %w", r.ID(), dest, err)
		}
	}
	if len(files) > 1 {
		names = append(names, hfIndex)
		text, err := json.MarshalIndent(map[string]any{"metadata": map[string]any{"total_size": total}, "weight_map": index}, "", "  ")
		if err != nil {
			return err
		}
		if err := create(filepath.Join(temp, hfIndex), func(f *os.File) error { _, err := f.Write(append(text, '\n')); return err }); err != nil {
			return err
		}
	}
	if err := publish(ctx, temp, dest); err != nil {
		return err
	}
	p.end()
	out := exported{Set: r.ID().String(), Dest: dest, Files: names, Bytes: total, Sent: total}
	took := time.Since(begin)
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s, %s in %s to %s, %s/s\n", out.Set, plural(len(tensors), "tensor", "tensors"), size(total), plural(len(names), "file", "files"), dest, size(int64(float64(total)/took.Seconds())))
	})
}

// writeHF writes one file. Tensors are laid out widest elements first, so that
// readers that map the file find each aligned.
func writeHF(ctx context.Context, r *ckpt.Reader, f *os.File, group []hfTensor, p *progress) error {
	specs, from := make([]shardfile.Spec, len(group)), make(map[string]string, len(group))
	largest := int64(0)
	for i, t := range group {
		specs[i], from[t.spec.Name] = t.spec, t.from
		largest = max(largest, t.size)
	}
	shardfile.Arrange(specs)
	h, err := shardfile.NewHeader(specs, map[string]string{"format": "pt"})
	if err != nil {
		return err
	}
	if err := reserve(f, h.FileSize); err != nil {
		return err
	}
	buf := make([]byte, largest)
	return shardfile.Encode(f, h, func(i int) (io.Reader, error) {
		b := buf[:h.Tensors[i].Size]
		if err := r.ReadTensor(ctx, from[h.Tensors[i].Name], b); err != nil {
			return nil, err
		}
		p.add(int64(len(b)))
		return bytes.NewReader(b), nil
	})
}
