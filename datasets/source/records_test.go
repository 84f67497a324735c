package source

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

type recordsFunc func(io.ReaderAt, int64) iter.Seq2[Range, error]

func texts(f recordsFunc, b []byte) (list []string, err error) {
	for r, err := range f(bytes.NewReader(b), int64(len(b))) {
		if err != nil {
			return list, err
		}
		if r.Offset < 0 || r.Size < 0 || r.Offset+r.Size > int64(len(b)) {
			return list, fmt.Errorf("range %+v of %d bytes", r, len(b))
		}
		list = append(list, string(b[r.Offset:r.Offset+r.Size]))
	}
	return list, nil
}

func npy(header string, data int) []byte {
	header += strings.Repeat(" ", 63-(10+len(header))%64) + "\n"
	b := append([]byte("\x93NUMPY\x01\x00"), 0, 0)
	binary.LittleEndian.PutUint16(b[8:], uint16(len(header)))
	b = append(b, header...)
	for i := range data {
		b = append(b, 'a'+byte(i))
	}
	return b
}

func ffrecord(samples ...string) []byte {
	n := uint64(len(samples))
	meta := binary.LittleEndian.AppendUint64(nil, n)
	for _, s := range samples {
		meta = binary.LittleEndian.AppendUint32(meta, crc32.ChecksumIEEE([]byte(s)))
	}
	at := 12 + 12*n
	for _, s := range samples {
		meta = binary.LittleEndian.AppendUint64(meta, at)
		at += uint64(len(s))
	}
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(meta))
	return append(append(b, meta...), strings.Join(samples, "")...)
}

func mds(samples ...string) []byte {
	config := `{"column_names": ["x"]}`
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(samples)))
	at := uint32(4 + 4*(len(samples)+1) + len(config))
	b = binary.LittleEndian.AppendUint32(b, at)
	for _, s := range samples {
		at += uint32(len(s))
		b = binary.LittleEndian.AppendUint32(b, at)
	}
	return append(append(b, config...), strings.Join(samples, "")...)
}

func safetensorsFile(t testing.TB) []byte {
	t.Helper()
	json := `{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"none":{"dtype":"U8","shape":[0],"data_offsets":[3,3]}}`
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(json)))
	b = append(append(b, json...), "abb"...)
	if _, err := shardfile.ParseHeader(b, int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecords(t *testing.T) {
	tr := &tree{format: NPY}
	shard := mds("one", "", "three")
	for name, c := range map[string]struct {
		f    recordsFunc
		b    []byte
		want []string
	}{
		"Lines":        {jsonlRecords, []byte("{\"a\":1}\n\n  \r\n {\"b\":2} \r\n{\"c\":3}"), []string{`{"a":1}`, `{"b":2}`, `{"c":3}`}},
		"LinesEnd":     {jsonlRecords, []byte("1\n2\n"), []string{"1", "2"}},
		"LinesNone":    {jsonlRecords, nil, nil},
		"LinesLong":    {jsonlRecords, []byte(strings.Repeat("x", 3*lineBuffer) + "\n" + strings.Repeat("y", lineBuffer)), []string{strings.Repeat("x", 3*lineBuffer), strings.Repeat("y", lineBuffer)}},
		"LinesAtEdge":  {jsonlRecords, []byte(strings.Repeat("x", lineBuffer-1) + "\ny"), []string{strings.Repeat("x", lineBuffer-1), "y"}},
		"Rows":         {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 1), }", 6), []string{"ab", "cd", "ef"}},
		"RowsOne":      {tr.npyRecords, npy("{'descr': '|S3', 'fortran_order': False, 'shape': (2,), }", 6), []string{"abc", "def"}},
		"RowsNone":     {tr.npyRecords, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", 0), nil},
		"Tensors":      {safetensorsRecords, safetensorsFile(t), []string{"a", "bb"}},
		"FFRecord":     {ffrecordRecords, ffrecord("one", "", "three"), []string{"one", "", "three"}},
		"FFRecordNone": {ffrecordRecords, ffrecord(), nil},
		"MDS":          {mdsShard{3, int64(len(shard))}.records, shard, []string{"one", "", "three"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := texts(c.f, c.b)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %.200q, want %.200q", got, c.want)
			}
		})
	}
	want := `{"format":"npy","rows":[{"dtype":"\u003cf4","shape":[3]},{"dtype":"\u003cu2","shape":[1]},{"dtype":"|S3","shape":[]}]}`
	if got := tr.Facts().Schema.String(); got != want {
		t.Errorf("schema %s, want %s", got, want)
	}
}

func TestRecordsRefused(t *testing.T) {
	tr := &tree{format: NPY}
	for name, c := range map[string]struct {
		f    recordsFunc
		b    []byte
		says string
	}{
		"Fortran":    {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': True, 'shape': (3, 1), }", 6), "contiguous"},
		"Objects":    {tr.npyRecords, npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", 6), "tree"},
		"Structured": {tr.npyRecords, npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", 12), "structured"},
		"Scalar":     {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", 2), "no axis"},
		"Short":      {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (30, 1), }", 6), "are there"},
		"Overflow":   {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }", 6), "fit"},
		"MDSOther":   {mdsShard{4, int64(len(mds("a")))}.records, mds("a"), "index.json says"},
		"NoParquet":  {(&tree{}).parquetRecords, []byte("PAR1 and then something else"), "PAR1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := texts(c.f, c.b); err == nil || catalog.ClassOf(err) == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("err = %v, want a class and %q", err, c.says)
			}
		})
	}
}

// TestPromise4CutAndFlippedRecords: a table of records, cut and flipped
// everywhere, gives records within the file or an error with a class.
func TestPromise4CutAndFlippedRecords(t *testing.T) {
	shard := mds("one", "", "three")
	tr := &tree{format: NPY}
	files := map[string]struct {
		f recordsFunc
		b []byte
	}{
		"npy":         {tr.npyRecords, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 1), }", 6)},
		"safetensors": {safetensorsRecords, safetensorsFile(t)},
		"ffrecord":    {ffrecordRecords, ffrecord("one", "", "three")},
		"mds":         {mdsShard{3, int64(len(shard))}.records, shard},
		"parquet":     {(&tree{}).parquetRecords, parquetFile(t)},
	}
	for name, c := range files {
		t.Run(name, func(t *testing.T) {
			try := func(b []byte) {
				if _, err := texts(c.f, b); err != nil && catalog.ClassOf(err) == nil {
					t.Fatalf("%v", err)
				}
			}
			for i := range c.b {
				try(c.b[:i])
				for _, x := range []byte{0xff, 0x80, 0x01} {
					flipped := bytes.Clone(c.b)
					flipped[i] ^= x
					try(flipped)
				}
			}
		})
	}
}

func parquetFile(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString(parquetHex)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParquet(t *testing.T) {
	tr := &tree{format: Parquet}
	b := parquetFile(t)
	got, err := texts(tr.parquetRecords, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d row groups, want 2", len(got))
	}
	for i, want := range []string{"\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", "\x03\x00\x00\x00\x00\x00\x00\x00"} {
		if !strings.HasSuffix(got[i], want) {
			t.Errorf("row group %d is %q, which does not end with its values", i, got[i])
		}
	}
	if got, want := tr.Facts().Schema.String(), `{"format":"parquet","columns":[{"name":"x"}]}`; got != want {
		t.Errorf("schema %s, want %s", got, want)
	}
}

func FuzzParquet(f *testing.F) {
	b, _ := hex.DecodeString(parquetHex)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := texts((&tree{}).parquetRecords, b); err != nil && catalog.ClassOf(err) == nil {
			t.Fatal(err)
		}
	})
}
