package remotetier

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// Target is the driver of one place for columns. It moves bytes and knows
// nothing of stripes; package targettest checks an implementation. Methods are
// called from several goroutines, and return soon after their context ends:
// the Tier's time limits rely on it. Beside the errors named here a method may
// return anything; ErrUnavailable (wrapped) says that the whole target cannot
// be reached now.
type Target interface {
	// Name is unique among the targets and stable for ever: it is in records
	// and columns. See CheckTargetName.
	Name() string

	// Create begins a column of size bytes. Nothing is visible before Commit.
	// ErrNoSpace if it will not fit; fs.ErrExist if another writer has begun
	// the key, or it exists and the mode does not replace.
	Create(ctx context.Context, key Key, size int64, mode CreateMode) (ColumnWriter, error)

	// Open reads a committed column; fs.ErrNotExist if there is none.
	Open(ctx context.Context, key Key) (ColumnReader, error)

	// Remove deletes a committed column, durably. A missing one is no error.
	Remove(ctx context.Context, key Key) error

	// List gives the committed columns of every blob at or under prefix, a
	// blob name or its first whole parts ("" for all), in the order of
	// Key.Compare. It ends with the first error.
	List(ctx context.Context, prefix string) iter.Seq2[Entry, error]

	// Space says how much the target holds and how much of that is free.
	Space(ctx context.Context) (Space, error)
}

// CreateMode says what a column may be written over.
type CreateMode uint8

const (
	// CreateNew: nothing; a key that exists is fs.ErrExist.
	CreateNew CreateMode = iota
	// CreateReplace: a committed column of that key. Commit puts the new one in
	// its place atomically: whoever opens the key meets the old column or the
	// new one, also after a crash, and never none. A reader that was open may
	// go on with bytes of either.
	CreateReplace
)

// Check reports what is wrong with the mode, if anything.
func (m CreateMode) Check() error {
	if m > CreateReplace {
		return fmt.Errorf("mode %d of a new column: %w", m, catalog.ErrInvalid)
	}
	return nil
}

// ColumnWriter takes the bytes of one column, from the first to the last. It
// is used by one goroutine at a time.
type ColumnWriter interface {
	// Write appends p: page-aligned memory, a multiple of 4096 bytes, owned by
	// the caller again when Write returns.
	Write(ctx context.Context, p []byte) error

	// Commit makes the column durable and then visible. It fails unless
	// exactly size bytes were written.
	Commit(ctx context.Context) error

	// Close gives up what was not committed, and leaves nothing of it. After
	// Commit it does nothing.
	Close() error
}

// ColumnReader reads a committed column. It is used by several goroutines.
// A column removed meanwhile stays readable, or gives an error.
type ColumnReader interface {
	// ReadAt is that of io.ReaderAt, within ctx. It is fastest when p is
	// page-aligned and both len(p) and off are multiples of 4096.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64 // bytes
	Close() error
}

// Entry is a committed column in a listing.
type Entry struct {
	Key  Key
	Size int64 // bytes of the whole column
}

// Space is the size of a target, in bytes.
type Space struct{ Total, Free int64 }

// Key names a column.
type Key struct {
	Blob       string
	Generation uint64
	Column     int
}

// Limits of names, in bytes (and parts).
const (
	MaxBlobName   = 1024
	MaxBlobPart   = 200
	MaxBlobDepth  = 16
	MaxTargetName = catalog.MaxTargetName
)

// CheckBlob reports what is wrong with a blob's name, if anything.
func CheckBlob(name string) error {
	bad := func(why string) error { return fmt.Errorf("blob name %.80q: %w: %s", name, catalog.ErrInvalid, why) }
	if name == "" || len(name) > MaxBlobName {
		return bad("want 1 to 1024 bytes")
	}
	if strings.Count(name, "/") >= MaxBlobDepth {
		return bad("more than 16 parts")
	}
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || len(p) > MaxBlobPart:
			return bad("a part is empty or longer than 200 bytes")
		case p[0] == '.':
			return bad("a part begins with a dot")
		case strings.ContainsFunc(p, notNameRune):
			return bad("only letters, digits, '-', '_', '.' and '/' are allowed")
		}
		if _, _, ok := parseColumnName(p); ok {
			return bad("a part looks like the file of a column")
		}
	}
	return nil
}

// CheckTargetName reports what is wrong with a target's name, if anything.
func CheckTargetName(name string) error { return catalog.CheckTargetName(name) }

func notNameRune(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
}

// Check reports what is wrong with the key, if anything.
func (k Key) Check() error {
	if k.Column < 0 || k.Column >= stripe.MaxColumns {
		return fmt.Errorf("column %d of %.80q: %w", k.Column, k.Blob, catalog.ErrInvalid)
	}
	return CheckBlob(k.Blob)
}

// Path is the column's slash-separated path on every target that has paths.
func (k Key) Path() string { return k.Blob + "/" + k.File() }

// File is the last part of Path.
func (k Key) File() string { return fmt.Sprintf("g%016x.c%02d.col", k.Generation, k.Column) }

func (k Key) String() string { return k.Path() }

// ParseKey reads what Path printed; anything else is ErrInvalid.
func ParseKey(path string) (Key, error) {
	i := strings.LastIndexByte(path, '/')
	if i >= 0 {
		if gen, col, ok := parseColumnName(path[i+1:]); ok {
			k := Key{Blob: path[:i], Generation: gen, Column: col}
			return k, k.Check()
		}
	}
	return Key{}, fmt.Errorf("column path %.80q: %w", path, catalog.ErrInvalid)
}

// parseColumnName reads "g<16 hex>.c<2 digits>.col".
func parseColumnName(s string) (generation uint64, column int, ok bool) {
	if len(s) != 25 || s[0] != 'g' || s[17:19] != ".c" || s[21:] != ".col" {
		return 0, 0, false
	}
	for _, c := range []byte(s[1:17]) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return 0, 0, false
		}
	}
	for _, c := range []byte(s[19:21]) {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
	}
	generation, err1 := strconv.ParseUint(s[1:17], 16, 64)
	column, err2 := strconv.Atoi(s[19:21])
	return generation, column, err1 == nil && err2 == nil
}

// Compare orders keys as List gives them: by blob, part by part, then by
// generation and column. It is the order of a walk through sorted folders
// that shows a folder's columns before its subfolders.
func (k Key) Compare(o Key) int {
	a, b := k.Blob, o.Blob
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return rank(a[i]) - rank(b[i])
		}
	}
	switch {
	case len(a) != len(b):
		return len(a) - len(b)
	case k.Generation != o.Generation:
		if k.Generation < o.Generation {
			return -1
		}
		return 1
	}
	return k.Column - o.Column
}

// rank puts the slash before every other byte of a name.
func rank(c byte) int {
	if c == '/' {
		return 0
	}
	return int(c)
}

// Under reports whether blob is at or under prefix.
func Under(blob, prefix string) bool {
	return prefix == "" || strings.HasPrefix(blob, prefix) && (len(blob) == len(prefix) || blob[len(prefix)] == '/')
}
