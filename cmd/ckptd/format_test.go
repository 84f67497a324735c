package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/zeebo/blake3"
)

// This file is a reader of columns that was written from remotetier/FORMAT.md
// alone and shares nothing with the one it judges: no geometry, no checksums, no
// Reed-Solomon. It is slow, plain, and checks every byte of a file.

// formatColumn is what one file says.
type formatColumn struct {
	path       string // of the file
	blob       string
	generation uint64
	size       int64 // of the blob
	unit       int64
	k, m, col  int
	targets    []string
	data       []byte
	content    [32]byte // BLAKE3 of the blob
}

var (
	formatLE  = binary.LittleEndian
	formatCRC = crc32.MakeTable(crc32.Castagnoli)
	formatCol = regexp.MustCompile(`^(.+)/g([0-9a-f]{16})\.c([0-9]{2})\.col$`)
)

// readFormat reads a column's file, rel being its path below DIR/columns.
func readFormat(path, rel string) (*formatColumn, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*formatColumn, error) {
		return nil, fmt.Errorf("%s: %s", rel, fmt.Sprintf(format, args...))
	}
	if len(b) < 8192 {
		return bad("%d bytes", len(b))
	}
	head := b[:4096]
	seed := crc32.Checksum(head[:4092], formatCRC)
	switch {
	case string(head[:8]) != "ckptCOLM", formatLE.Uint32(head[8:]) != 1, formatLE.Uint32(head[12:]) != 65536, formatLE.Uint32(head[44:]) != 0:
		return bad("the header's magic, version, block size or flags: % x", head[:48])
	case formatLE.Uint32(head[4092:]) != seed:
		return bad("the header's CRC")
	}
	c := &formatColumn{
		path: path, size: int64(formatLE.Uint64(head[16:])), generation: formatLE.Uint64(head[24:]), unit: int64(formatLE.Uint32(head[32:])),
		k: int(formatLE.Uint16(head[36:])), m: int(formatLE.Uint16(head[38:])), col: int(formatLE.Uint16(head[40:])),
	}
	rest := head[48:4092]
	c.blob, rest = string(rest[:formatLE.Uint16(head[42:])]), rest[formatLE.Uint16(head[42:]):]
	for range c.k + c.m {
		n := int(rest[0])
		c.targets, rest = append(c.targets, string(rest[1:1+n])), rest[1+n:]
	}
	switch m := formatCol.FindStringSubmatch(rel); {
	case c.k < 1 || c.k > 32 || c.m > 8 || c.unit%65536 != 0 || c.unit < 65536 || c.unit > 16<<20 || c.size > 1<<42:
		return bad("a geometry of %d+%d, unit %d, size %d", c.k, c.m, c.unit, c.size)
	case !formatZeros(rest):
		return bad("the header does not end in zeros")
	case m == nil || m[1] != c.blob || m[2] != fmt.Sprintf("%016x", c.generation) || m[3] != fmt.Sprintf("%02d", c.col) || c.col >= c.k+c.m:
		return bad("the name does not fit the header: %s generation %d column %d", c.blob, c.generation, c.col)
	}
	data := c.dataSize()
	blocks := (data + 65535) / 65536
	pages := (blocks + 1021) / 1022
	if want := 4096 + data + 4096*pages + 4096; int64(len(b)) != want {
		return bad("%d bytes, want %d", len(b), want)
	}
	c.data = b[4096 : 4096+data]
	for p := range pages {
		page := b[4096+data+4096*p:][:4096]
		if formatLE.Uint32(page[4088:]) != uint32(p) || formatLE.Uint32(page[4092:]) != crc32.Update(seed, formatCRC, page[:4092]) {
			return bad("page %d of sums: its number or CRC", p)
		}
		for i := range int64(1022) {
			sum, at := formatLE.Uint32(page[4*i:]), (1022*p+i)*65536
			if at >= data {
				if sum != 0 {
					return bad("a sum behind the last block")
				}
			} else if sum != crc32.Checksum(c.data[at:min(at+65536, data)], formatCRC) {
				return bad("the CRC of block %d", 1022*p+i)
			}
		}
	}
	foot := b[len(b)-4096:]
	switch {
	case string(foot[:8]) != "ckptCEND", formatLE.Uint32(foot[8:]) != 1, formatLE.Uint32(foot[12:]) != 0, formatLE.Uint64(foot[16:]) != uint64(data):
		return bad("the footer's magic, version, flags or data: % x", foot[:24])
	case formatLE.Uint32(foot[4092:]) != crc32.Update(seed, formatCRC, foot[:4092]), !formatZeros(foot[56:4092]):
		return bad("the footer's CRC or zeros")
	}
	c.content = [32]byte(foot[24:])
	return c, nil
}

func formatZeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// lastUnit is the size of the units of a last, short stripe; 0: there is none.
func (c *formatColumn) lastUnit() int64 {
	r := c.size % (int64(c.k) * c.unit)
	return ((r+int64(c.k)-1)/int64(c.k) + 4095) / 4096 * 4096
}

func (c *formatColumn) dataSize() int64 {
	return c.size/(int64(c.k)*c.unit)*c.unit + c.lastUnit()
}

// findFormat reads every column of some targets, given by name, and tells what
// is wrong with any, and what else is there. Columns are found by blob.
func findFormat(dirs map[string]string) (map[string][]*formatColumn, error) {
	found := map[string][]*formatColumn{}
	var errs []error
	for name, dir := range dirs {
		id, err := os.ReadFile(filepath.Join(dir, "target.id"))
		if want := "ckptd target 1\n" + name + "\n"; err != nil || string(id) != want {
			errs = append(errs, fmt.Errorf("target.id of %s is %q, %v", name, id, err))
		}
		if left, err := os.ReadDir(filepath.Join(dir, "staging")); err != nil || len(left) > 0 {
			errs = append(errs, fmt.Errorf("staging of %s holds %v, %v", name, left, err))
		}
		root := filepath.Join(dir, "columns")
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			c, err := readFormat(path, filepath.ToSlash(rel))
			if err != nil {
				errs = append(errs, fmt.Errorf("target %s: %w", name, err))
				return nil
			}
			found[c.blob] = append(found[c.blob], c)
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return found, errors.Join(errs...)
}

// onlyFormat says whether the targets hold nothing that should not be there:
// one generation of each blob, whole, and no more. Of a small record, which is
// copies, there may be more of them, and older ones.
func onlyFormat(found map[string][]*formatColumn) error {
	for blob, cols := range found {
		newest, n := uint64(0), 0
		for _, c := range cols {
			newest = max(newest, c.generation)
		}
		for _, c := range cols {
			if c.generation == newest {
				n++
			} else if c.k > 1 {
				return fmt.Errorf("%s: generations %d and %d", blob, c.generation, newest)
			}
		}
		if want := cols[0].k + cols[0].m; n != want && !(cols[0].k == 1 && n > want) {
			return fmt.Errorf("%s: %d columns of generation %d, want %d", blob, n, newest, want)
		}
	}
	return nil
}

// joinFormat says whether columns are all of one blob, each of them once, with
// the parity that belongs to the data, and gives the blob, which it rebuilds
// from k columns that rnd chooses, too.
func joinFormat(cols []*formatColumn, rnd *rand.Rand) ([]byte, error) {
	first := cols[0]
	n := first.k + first.m
	byCol := make([]*formatColumn, n)
	for _, c := range cols {
		if c.blob != first.blob || c.generation != first.generation || c.size != first.size || c.unit != first.unit || c.k != first.k || c.m != first.m || c.content != first.content {
			return nil, fmt.Errorf("%s and %s do not belong together", first.path, c.path)
		}
		if byCol[c.col] != nil {
			return nil, fmt.Errorf("%s: column %d is there twice", c.path, c.col)
		}
		byCol[c.col] = c
	}
	if len(cols) != n {
		return nil, fmt.Errorf("%s: %d columns, want %d", first.blob, len(cols), n)
	}
	matrix := formatMatrix(first.k, first.m)
	for p := first.k; p < n; p++ {
		want := make([]byte, len(first.data))
		for i := range first.k {
			formatMulAdd(want, byCol[i].data, matrix[p][i])
		}
		if !bytes.Equal(want, byCol[p].data) {
			return nil, fmt.Errorf("%s: parity %d does not fit the data", first.blob, p)
		}
	}
	data := make([][]byte, first.k)
	for i := range data {
		data[i] = byCol[i].data
	}
	blob := first.blobOf(data)
	if blake3.Sum256(blob) != first.content {
		return nil, fmt.Errorf("%s: the BLAKE3 of its bytes is another", first.blob)
	}
	have := rnd.Perm(n)[:first.k]
	if again := first.blobOf(formatRebuild(byCol, have, matrix)); !bytes.Equal(again, blob) {
		return nil, fmt.Errorf("%s: columns %v give other bytes", first.blob, have)
	}
	return blob, nil
}

// blobOf puts the data columns together.
func (c *formatColumn) blobOf(data [][]byte) []byte {
	blob := make([]byte, 0, c.size+int64(c.k)*4096)
	for at := int64(0); at < c.dataSize(); {
		u := c.unit
		if at == c.dataSize()-c.lastUnit() {
			u = c.lastUnit()
		}
		for _, d := range data {
			blob = append(blob, d[at:at+u]...)
		}
		at += u
	}
	if !formatZeros(blob[c.size:]) {
		return nil // padding is zeros
	}
	return blob[:c.size]
}

// GF(2^8) with x^8+x^4+x^3+x^2+1, one bit after the other.

func formatMul(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 > 0 {
			p ^= a
		}
		over := a&0x80 > 0
		if a <<= 1; over {
			a ^= 0x1D
		}
	}
	return p
}

func formatInverse(a byte) byte {
	for b := 1; b < 256; b++ {
		if formatMul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	panic("0 has no inverse")
}

// formatMulAdd adds by × src to dst.
func formatMulAdd(dst, src []byte, by byte) {
	var table [256]byte
	for i := range table {
		table[i] = formatMul(byte(i), by)
	}
	for i, b := range src {
		dst[i] ^= table[b]
	}
}

// formatMatrix turns data units into all units of a stripe.
func formatMatrix(k, m int) [][]byte {
	v := make([][]byte, k+m) // Vandermonde: r^c
	for r := range v {
		v[r] = make([]byte, k)
		for c := range v[r] {
			v[r][c] = 1
			for range c {
				v[r][c] = formatMul(v[r][c], byte(r))
			}
		}
	}
	inv := formatInvert(v[:k])
	out := make([][]byte, k+m)
	for r := range out {
		out[r] = make([]byte, k)
		for i := range k {
			formatMulAdd(out[r], inv[i], v[r][i])
		}
		for c := range k {
			if r >= k && (k == 1 || m == 1) {
				out[r][c] = 1 // copies; xor
			}
		}
	}
	return out
}

// formatInvert is Gauss and Jordan.
func formatInvert(m [][]byte) [][]byte {
	n := len(m)
	a := make([][]byte, n)
	for r := range a {
		a[r] = append(slices.Clone(m[r]), make([]byte, n)...)
		a[r][n+r] = 1
	}
	for c := range n {
		pivot := c
		for a[pivot][c] == 0 {
			pivot++ // out of range: the matrix has no inverse
		}
		a[c], a[pivot] = a[pivot], a[c]
		row := make([]byte, 2*n)
		formatMulAdd(row, a[c], formatInverse(a[c][c]))
		a[c] = row
		for r := range n {
			if r != c && a[r][c] != 0 {
				formatMulAdd(a[r], a[c], a[r][c]) // adding is subtracting
			}
		}
	}
	for r := range a {
		a[r] = a[r][n:]
	}
	return a
}

// formatRebuild gives the data columns from k others.
func formatRebuild(cols []*formatColumn, have []int, matrix [][]byte) [][]byte {
	var rows [][]byte
	for _, c := range have {
		rows = append(rows, slices.Clone(matrix[c]))
	}
	inv := formatInvert(rows)
	data := make([][]byte, len(have))
	for i := range data {
		data[i] = make([]byte, len(cols[0].data))
		for j, c := range have {
			formatMulAdd(data[i], cols[c].data, inv[i][j])
		}
	}
	return data
}
