package source

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"

	"github.com/ckptd/ckptd/catalog"
)

const (
	offsetBuffer = 64 << 10 // bytes of offsets read at a time
	maxMDSIndex  = 64 << 20 // bytes of an index.json
)

// offsetTable reads a table of n+1 offsets of width bytes at start: the samples
// are what lies between two of them. With end not 0 the table has only n, and
// end is the last one. No sample begins before first, or ends after size.
func offsetTable(r io.ReaderAt, start, n int64, width int, first, end, size int64) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		entries := n + 1
		if end != 0 {
			entries = n
		}
		buf := make([]byte, min(offsetBuffer, entries*int64(width)))
		prev, have := int64(0), false
		next := func(off int64, i int64) bool {
			if off < first || off > size || have && off < prev {
				yield(Range{}, corrupt("offset %d of its table is %d, which does not fit", i, off))
				return false
			}
			ok := !have || yield(Range{prev, off - prev}, nil)
			prev, have = off, true
			return ok
		}
		for i := int64(0); i < entries; {
			part := buf[:min(int64(len(buf)), (entries-i)*int64(width))]
			if err := readFull(r, part, start+i*int64(width)); err != nil {
				yield(Range{}, err)
				return
			}
			for ; len(part) > 0; part, i = part[width:], i+1 {
				var off int64
				if width == 4 {
					off = int64(binary.LittleEndian.Uint32(part))
				} else {
					off = int64(binary.LittleEndian.Uint64(part)) // negative is below first
				}
				if !next(off, i) {
					return
				}
			}
		}
		if end != 0 && n > 0 {
			next(end, n)
		}
	}
}

// ffrecordRecords gives the samples of a file of HFAiLab's FFRecord:
// u32 crc of what follows up to the data, u64 n, u32 crc[n], u64 offset[n], the
// samples. Each ends where the next begins; the CRC is zlib's.
func ffrecordRecords(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	n, err := ffrecordCount(r, size)
	if err != nil {
		return failed(fmt.Errorf("FFRecord: %w", err))
	}
	data := 12 + 12*n
	return offsetTable(r, 12+4*n, n, 8, data, size, size)
}

func ffrecordCount(r io.ReaderAt, size int64) (int64, error) {
	head := make([]byte, 12)
	if err := readFull(r, head, 0); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(head[4:])
	if n > MaxRecords || 12+12*int64(n) > size {
		return 0, corrupt("%d samples in a file of %d bytes", n, size)
	}
	sum := crc32.NewIEEE()
	if _, err := io.Copy(sum, io.NewSectionReader(r, 4, 8+12*int64(n))); err != nil {
		return 0, err
	}
	if got, want := sum.Sum32(), binary.LittleEndian.Uint32(head); got != want {
		return 0, corrupt("the checksum of its tables is %08x, it says %08x", got, want)
	}
	return int64(n), nil
}

// mdsShard is a shard of MosaicML streaming's MDS: u32 n, u32 offsets[n+1], its
// columns as JSON, the samples.
type mdsShard struct {
	samples int64
	bytes   int64
}

func (s mdsShard) records(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	fail := func(err error) iter.Seq2[Range, error] { return failed(fmt.Errorf("MDS shard: %w", err)) }
	if size != s.bytes {
		return fail(corrupt("%d bytes, index.json says %d", size, s.bytes))
	}
	head := make([]byte, 4)
	if err := readFull(r, head, 0); err != nil {
		return fail(err)
	}
	n := int64(binary.LittleEndian.Uint32(head))
	if data := 4 + 4*(n+1); n != s.samples || data > size {
		return fail(corrupt("%d samples in %d bytes, index.json says %d", n, size, s.samples))
	}
	return offsetTable(r, 4, n, 4, 4+4*(n+1), 0, size)
}

// readMDS reads an index.json: the shards by their path, and their columns.
func readMDS(root string, k *kinds) (map[string]mdsShard, error) {
	name := filepath.Join(root, "index.json")
	fail := func(err error) (map[string]mdsShard, error) { return nil, fmt.Errorf("%s: %w", name, err) }
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: an MDS dataset is a folder with an index.json", root, catalog.ErrInvalid)
	}
	if err != nil {
		return nil, err // names the path
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMDSIndex+1))
	if err != nil {
		return fail(err)
	}
	if len(b) > maxMDSIndex {
		return fail(invalid("larger than %d bytes", maxMDSIndex))
	}
	var index struct {
		Version int `json:"version"`
		Shards  []struct {
			Format      string   `json:"format"`
			Compression *string  `json:"compression"`
			Names       []string `json:"column_names"`
			Encodings   []string `json:"column_encodings"`
			Samples     int64    `json:"samples"`
			Raw         struct {
				Basename string `json:"basename"`
				Bytes    int64  `json:"bytes"`
			} `json:"raw_data"`
		} `json:"shards"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return fail(corrupt("%v", err))
	}
	if index.Version != 2 || len(index.Shards) == 0 {
		return fail(invalid("version %d with %d shards; want version 2 of MosaicML streaming", index.Version, len(index.Shards)))
	}
	shards := make(map[string]mdsShard)
	for i, s := range index.Shards {
		switch clean, err := cleanPath(s.Raw.Basename); {
		case err != nil:
			return fail(fmt.Errorf("shard %d: %w", i, err))
		case s.Format != "mds":
			return fail(invalid("shard %d is of format %q; import such data with --format jsonl or tree", i, s.Format))
		case s.Compression != nil && *s.Compression != "":
			return fail(invalid("shard %d is compressed with %.40q, so no sample can be read alone; write it again without compression (MDSWriter(compression=None)), or import it with --format tree", i, *s.Compression))
		case clean == "" || clean != path.Clean(s.Raw.Basename):
			return fail(corrupt("shard %d is called %.200q", i, s.Raw.Basename))
		case s.Samples < 0 || s.Raw.Bytes < 0:
			return fail(corrupt("shard %d has %d samples in %d bytes", i, s.Samples, s.Raw.Bytes))
		default:
			if _, ok := shards[clean]; ok {
				return fail(corrupt("two shards are called %.200q", clean))
			}
			if _, err := os.Stat(filepath.Join(root, clean)); err != nil {
				return fail(fmt.Errorf("shard %d: %w", i, err))
			}
			shards[clean] = mdsShard{s.Samples, s.Raw.Bytes}
		}
		for j, name := range s.Names {
			c := Column{Name: name}
			if j < len(s.Encodings) {
				c.Type = s.Encodings[j]
			}
			k.add(name+"\x00"+c.Type, c)
		}
	}
	return shards, nil
}
