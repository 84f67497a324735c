package datasets

import (
	"bytes"
	"fmt"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/source"
)

// ruleFrom is how many records in a row must have one size and one distance to
// be a rule of the index: below it, a rule gains nothing.
const ruleFrom = 64

// run is some records of a file that have one size, at one distance.
type run struct {
	offset, stride, size int64
	count                int64
}

// readRuns reads a file's records; data is its content when that is in memory.
func readRuns(it *source.Item, data []byte) ([]run, error) {
	var at io.ReaderAt = bytes.NewReader(data)
	if data == nil && it.Size > 0 {
		r, err := it.Open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		at = r.(io.ReaderAt) // by Item's promise
	}
	var runs []run
	for r, err := range it.Records(at, it.Size) {
		if err != nil {
			return nil, err
		}
		if r.Offset < 0 || r.Size < 0 || r.Offset > it.Size-r.Size {
			return nil, fmt.Errorf("%w: a record of %d bytes at %d of %d", catalog.ErrCorrupt, r.Size, r.Offset, it.Size)
		}
		runs = addRecord(runs, r)
	}
	return runs, nil
}

// addRecord lengthens the last run, or begins one.
func addRecord(runs []run, r source.Range) []run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		step := r.Offset - (last.offset + (last.count-1)*last.stride)
		if last.size == r.Size && step > 0 && (last.count == 1 || step == last.stride) {
			last.stride = step
			last.count++
			return runs
		}
	}
	return append(runs, run{offset: r.Offset, size: r.Size, count: 1})
}

// addRuns makes the records samples.
func addRuns(b *index.Builder, id index.FileID, runs []run) error {
	for _, r := range runs {
		if r.count >= ruleFrom {
			if err := b.Stride(r.count, index.Rule{File: id, Offset: r.offset, Stride: r.stride, Size: r.size}); err != nil {
				return err
			}
			continue
		}
		for i := range r.count {
			if err := b.Sample(index.Range{File: id, Offset: r.offset + i*r.stride, Size: r.size}); err != nil {
				return err
			}
		}
	}
	return nil
}
