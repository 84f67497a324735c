package source

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Kind says what an item is.
type Kind uint8

const (
	File Kind = iota
	Folder
	Link // symbolic
)

func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Folder:
		return "folder"
	case Link:
		return "symlink"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Item is one thing of a source. The root folder has the path "".
type Item struct {
	Path   string // bytes, relative, between "/"
	Kind   Kind
	Mode   uint32 // permission bits, with setuid, setgid and sticky
	Mtime  time.Time
	Size   int64  // bytes of a file
	Target string // of a symlink

	// Open reads the file. Where Records is not nil the reader is also an
	// io.ReaderAt. Items of a Stream are read before the next one is asked for,
	// others at any time and by any goroutine.
	Open func() (io.ReadCloser, error)
	// Records gives the samples within the file, by rising offset. nil: the whole
	// file is one field.
	Records func(r io.ReaderAt, size int64) iter.Seq2[Range, error]

	Sample   string // files in a row with the same key are one sample; "": one by itself
	NoSample bool   // stored, and no sample
	Same     string // the path of an earlier file whose content this is; Open is nil
	// Steady says that path, size and Mtime change when the content does, as on a
	// file system; a tar's times say nothing.
	Steady bool
}

// Range is a sample within a file, in bytes.
type Range struct{ Offset, Size int64 }

// Source is an opened source. Items may be gone through once.
type Source interface {
	// Items gives the items; the first error ends them. The pointer is good until
	// the next one is asked for.
	Items(ctx context.Context) iter.Seq2[*Item, error]
	// Facts tells what this is; the schema and what was skipped are known when
	// Items and all Records are through.
	Facts() Facts
	Close() error
}

// Facts are what a source says of itself.
type Facts struct {
	Format  Format
	Stream  bool   // items are read in their order, one at a time
	Bytes   int64  // of input that will be read, 0 when unknown
	Schema  Schema // of the records
	Skipped int64  // special files
}

// Format is how samples lie in a source.
type Format string

const (
	Auto        Format = "auto"        // by what is there
	Tree        Format = "tree"        // every file a sample
	Tar         Format = "tar"         // every member a sample
	WebDataset  Format = "webdataset"  // members that share a stem are one
	JSONL       Format = "jsonl"       // every line
	Parquet     Format = "parquet"     // every row group
	NPY         Format = "npy"         // every row of the first axis
	Safetensors Format = "safetensors" // every tensor
	MDS         Format = "mds"         // MosaicML streaming
	FFRecord    Format = "ffrecord"
)

// Formats lists what ParseFormat takes.
var Formats = []Format{Auto, Tree, Tar, WebDataset, JSONL, Parquet, NPY, Safetensors, MDS, FFRecord}

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	var names []string
	for _, f := range Formats {
		if s == string(f) {
			return f, nil
		}
		names = append(names, string(f))
	}
	return "", fmt.Errorf("format %.80q: %w: want one of %s", s, catalog.ErrInvalid, strings.Join(names, ", "))
}

// Limits of a source. They are those of Linux where it has some.
const (
	MaxPath    = 4095 // bytes
	MaxName    = 255  // bytes of one part of a path
	MaxTarget  = 4095 // bytes of a symlink
	MaxRecords = 1 << 31
)

// Options change how a source is opened.
type Options struct {
	Format      Format    // "" is Auto
	SkipSpecial bool      // leave sockets, devices and pipes out
	Stdin       io.Reader // what "-" reads; nil: "-" is refused
}
