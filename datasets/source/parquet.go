package source

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

const maxParquetFooter = 256 << 20 // bytes

// parquetRecords gives the bytes of every row group that has rows. A reader puts
// the footer behind them, or asks a Parquet library for the group by its number.
func (t *tree) parquetRecords(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	fail := func(err error) iter.Seq2[Range, error] { return failed(fmt.Errorf("parquet: %w", err)) }
	footer, err := parquetFooter(r, size)
	if err != nil {
		return fail(err)
	}
	p := parquet{thrift: thrift{footer}, data: size - 8 - int64(len(footer))}
	if err := p.file(); err != nil {
		if catalog.ClassOf(err) == nil {
			err = fmt.Errorf("%w: %w", catalog.ErrCorrupt, err)
		}
		return fail(err)
	}
	for i, name := range p.columns {
		t.kinds.add(fmt.Sprintf("%06d%s", i, name), Column{Name: name})
	}
	return func(yield func(Range, error) bool) {
		end := int64(0)
		for i, g := range p.groups {
			if g.Offset < end {
				yield(Range{}, fmt.Errorf("parquet: %w", corrupt("row group %d begins at %d, within the one before", i, g.Offset)))
				return
			}
			if end = g.Offset + g.Size; !yield(g, nil) {
				return
			}
		}
	}
}

// parquetFooter reads the metadata: … metadata, u32 its length, "PAR1".
func parquetFooter(r io.ReaderAt, size int64) ([]byte, error) {
	tail, head := make([]byte, 8), make([]byte, 4)
	if size < 12 {
		return nil, corrupt("%d bytes are too few", size)
	}
	if err := readFull(r, head, 0); err != nil {
		return nil, err
	}
	if err := readFull(r, tail, size-8); err != nil {
		return nil, err
	}
	if string(tail[4:]) == "PARE" {
		return nil, invalid("its footer is encrypted; import it with --format tree")
	}
	if string(head) != "PAR1" || string(tail[4:]) != "PAR1" {
		return nil, corrupt("it does not begin and end with PAR1")
	}
	n := int64(binary.LittleEndian.Uint32(tail))
	if n > size-12 || n > maxParquetFooter {
		return nil, corrupt("a footer of %d bytes in a file of %d", n, size)
	}
	footer := make([]byte, n)
	return footer, readFull(r, footer, size-8-n)
}

// parquet is what the footer tells of the row groups.
type parquet struct {
	thrift
	data    int64 // where the data ends, in bytes
	columns []string
	groups  []Range
}

// file reads FileMetaData: 2 the schema, 4 the row groups.
func (p *parquet) file() error {
	return p.fields(0, func(id int64, kind byte) (bool, error) {
		if kind != thriftList || id != 2 && id != 4 {
			return false, nil
		}
		of, n, err := p.list()
		if err == nil && of != thriftOf {
			err = errThrift
		}
		for i := uint64(0); err == nil && i < n; i++ {
			if id == 2 {
				err = p.element()
			} else {
				err = p.group()
			}
		}
		return true, err
	})
}

// element reads SchemaElement: 4 the name, 5 how many children. Leaves are columns.
func (p *parquet) element() error {
	name, children := "", int64(0)
	err := p.fields(1, func(id int64, kind byte) (done bool, err error) {
		switch {
		case id == 4 && kind == thriftBinary:
			b, err := p.binary()
			name = string(b)
			return true, err
		case id == 5 && kind == thriftI32:
			children, err = p.number()
			return true, err
		}
		return false, nil
	})
	if children == 0 && len(p.columns) <= maxKinds {
		p.columns = append(p.columns, name)
	}
	return err
}

// group reads RowGroup: 1 the column chunks, 3 how many rows. Its bytes are
// those from the first chunk to the end of the last.
func (p *parquet) group() error {
	var chunks []Range
	rows := int64(0)
	err := p.fields(1, func(id int64, kind byte) (done bool, err error) {
		switch {
		case id == 1 && kind == thriftList:
			of, n, err := p.list()
			if err == nil && of != thriftOf {
				err = errThrift
			}
			for ; err == nil && n > 0; n-- {
				var c Range
				if c, err = p.chunk(); err == nil {
					chunks = append(chunks, c)
				}
			}
			return true, err
		case id == 3 && kind == thriftI64:
			rows, err = p.number()
			return true, err
		}
		return false, nil
	})
	if err != nil || rows == 0 || len(chunks) == 0 {
		return err
	}
	first := slices.MinFunc(chunks, func(a, b Range) int { return int(min(max(a.Offset-b.Offset, -1), 1)) })
	end := int64(0)
	for _, c := range chunks {
		end = max(end, c.Offset+c.Size)
	}
	p.groups = append(p.groups, Range{first.Offset, end - first.Offset})
	return nil
}

// chunk reads ColumnChunk: 1 another file's name, 3 its metadata, of which 7 is
// the compressed size, 9 where the data pages begin and 11 the dictionary.
func (p *parquet) chunk() (Range, error) {
	size, data, dict, elsewhere := int64(-1), int64(-1), int64(0), false
	err := p.fields(2, func(id int64, kind byte) (bool, error) {
		switch {
		case id == 1 && kind == thriftBinary:
			elsewhere = true
		case id == 3 && kind == thriftOf:
			return true, p.fields(3, func(id int64, kind byte) (done bool, err error) {
				var into *int64
				switch id {
				case 7:
					into = &size
				case 9:
					into = &data
				case 11:
					into = &dict
				}
				if into == nil || kind != thriftI64 {
					return false, nil
				}
				*into, err = p.number()
				return true, err
			})
		}
		return false, nil
	})
	if err != nil {
		return Range{}, err
	}
	if elsewhere {
		return Range{}, invalid("its columns are in other files; import it with --format tree")
	}
	if dict > 0 && dict < data {
		data = dict
	}
	if data < 4 || size < 0 || data > p.data || size > p.data-data {
		return Range{}, corrupt("a column of %d bytes at %d does not fit into its %d of data", size, data, p.data)
	}
	return Range{data, size}, nil
}
