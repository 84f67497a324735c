package source

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

const (
	peekBytes  = 512     // to know a tar
	readBuffer = 1 << 20 // of a stream, in bytes
	autoLook   = 1000    // files that Auto looks at
	maxShards  = 1 << 20 // tars of one dataset
)

type peeker struct{ *bufio.Reader }

func newPeeker(r io.Reader) peeker { return peeker{bufio.NewReaderSize(r, readBuffer)} }

func (p peeker) head() []byte {
	b, _ := p.Peek(peekBytes) // an error comes again when it is read
	return b
}

// Open opens src: a folder, a file, a tar, several of them as
// "train-{000..127}.tar", or "-" for a tar on standard input.
func Open(src string, opt Options) (Source, error) {
	if opt.Format == "" {
		opt.Format = Auto
	}
	s, err := open(src, opt)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", src, err)
	}
	return s, nil
}

func open(src string, opt Options) (Source, error) {
	if src == "-" {
		if opt.Stdin == nil {
			return nil, invalid("there is no standard input here")
		}
		switch opt.Format {
		case Auto, WebDataset:
			return &tars{files: []string{"-"}, opt: opt, format: WebDataset}, nil
		case Tar:
			return &tars{files: []string{"-"}, opt: opt, format: Tar}, nil
		}
		return nil, invalid("only tars can be read from standard input, and %s is asked for", opt.Format)
	}
	info, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) {
		if names, err := expand(src); err != nil || names != nil {
			if err != nil {
				return nil, err
			}
			return openTars(names, opt)
		}
	}
	if err != nil {
		return nil, bare(err)
	}
	if info.IsDir() {
		return openFolder(src, opt)
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("neither a file nor a folder; a pipe is read as \"-\" (… | ckpt dataset import - NAME)")
	}
	format := opt.Format
	if format == Auto {
		if format = formatOfName(src); format == Tree {
			if ok, err := looksLikeTar(src); err != nil {
				return nil, err
			} else if ok {
				format = WebDataset
			}
		}
	}
	switch format {
	case Tar, WebDataset:
		opt.Format = format
		return openTars([]string{src}, opt)
	case MDS:
		return nil, invalid("an MDS dataset is a folder with an index.json")
	}
	if err := compressedRecords(src, format); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(src)
	if err != nil {
		return nil, err
	}
	return &tree{root: filepath.Dir(abs), only: filepath.Base(abs), opt: opt, format: format}, nil
}

func compressedRecords(name string, format Format) error {
	if format != JSONL {
		return nil
	}
	for _, end := range []string{".gz", ".zst", ".xz", ".bz2"} {
		if strings.HasSuffix(name, end) {
			return invalid("%s is compressed, so no line of it can be read alone; decompress it first, or import with --format tree", filepath.Base(name))
		}
	}
	return nil
}

// formatOfName tells the format of a file by its ending; Tree for any other.
func formatOfName(name string) Format {
	lower := strings.ToLower(filepath.Base(name))
	for _, end := range tarEndings {
		if strings.HasSuffix(lower, end) {
			return WebDataset
		}
	}
	switch filepath.Ext(lower) {
	case ".jsonl", ".ndjson":
		return JSONL
	case ".parquet":
		return Parquet
	case ".npy":
		return NPY
	case ".safetensors":
		return Safetensors
	case ".ffr", ".ffrecord":
		return FFRecord
	}
	return Tree
}

func looksLikeTar(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, bare(err)
	}
	defer f.Close()
	head := make([]byte, peekBytes)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, bare(err)
	}
	_, _, ok := magic(head[:n])
	return ok, nil
}

func openFolder(src string, opt Options) (Source, error) {
	format := opt.Format
	if format == Auto {
		var err error
		if format, err = look(src); err != nil {
			return nil, err
		}
	}
	t := &tree{root: filepath.Clean(src), opt: opt, format: format}
	switch format {
	case Tar, WebDataset:
		names, err := tarsOf(src)
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			return nil, invalid("there are no tars in it")
		}
		opt.Format = format
		return openTars(names, opt)
	case MDS:
		var err error
		if t.shards, err = readMDS(src, &t.kinds); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// tarsOf lists the tars that lie in a folder.
func tarsOf(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, bare(err)
	}
	var names []string
	for _, e := range entries {
		if formatOfName(e.Name()) == WebDataset && !e.IsDir() {
			names = append(names, filepath.Join(folder, e.Name()))
		}
	}
	return names, nil
}

// look chooses the format of a folder: MDS by its index.json; a format of
// records when every file looked at is of it, or is a note beside the data.
func look(folder string) (Format, error) {
	if b, err := os.ReadFile(filepath.Join(folder, "index.json")); err == nil && strings.Contains(string(b), `"raw_data"`) {
		return MDS, nil
	}
	found, files := Auto, 0
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || note(d.Name()) {
			return nil
		}
		if files++; files > autoLook {
			return filepath.SkipAll
		}
		f := formatOfName(d.Name())
		if f == WebDataset && filepath.Dir(p) != filepath.Clean(folder) {
			f = Tree // tars further down are files
		}
		if found != Auto && f != found {
			f = Tree
		}
		if found = f; found == Tree {
			return filepath.SkipAll
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("look at it: %w", err)
	}
	if found == Auto {
		found = Tree
	}
	return found, nil
}

// note tells a file that lies beside data and is none.
func note(name string) bool {
	lower := strings.ToLower(name)
	if lower[0] == '.' || lower[0] == '_' {
		return true
	}
	for _, begin := range []string{"readme", "license", "licence", "changelog", "dataset_info", "sha256sum", "md5sum"} {
		if strings.HasPrefix(lower, begin) {
			return true
		}
	}
	return false
}

func openTars(names []string, opt Options) (Source, error) {
	t := &tars{files: names, opt: opt, format: opt.Format}
	switch t.format {
	case Auto:
		t.format = WebDataset
	case Tar, WebDataset:
	default:
		return nil, invalid("tars are asked to be of format %s; want tar or webdataset", t.format)
	}
	stems := make(map[string]string)
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err // names the path
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: %w", name, invalid("not a file"))
		}
		t.bytes += info.Size()
		stem := tarStem(filepath.Base(name))
		if other, ok := stems[stem]; ok {
			return nil, invalid("%s and %s would have the same folder", other, name)
		}
		stems[stem] = name
	}
	return t, nil
}

// expand gives the names of a pattern such as "train-{000..127}.tar"; nil when
// it has no braces.
func expand(src string) ([]string, error) {
	open := strings.LastIndexByte(src, '{')
	end := strings.IndexByte(src[max(open, 0):], '}')
	if open < 0 || end < 0 {
		return nil, nil
	}
	from, to, ok := strings.Cut(src[open+1:open+end], "..")
	lo, err := strconv.Atoi(from)
	hi, err2 := strconv.Atoi(to)
	if !ok || err != nil || err2 != nil || lo < 0 || hi < lo || hi-lo >= maxShards {
		return nil, fmt.Errorf("pattern %.200q: %w: want two numbers, as in train-{000..127}.tar", src, catalog.ErrInvalid)
	}
	width := 0
	if len(from) > 1 && from[0] == '0' {
		width = len(from)
	}
	var names []string
	for i := lo; i <= hi; i++ {
		names = append(names, fmt.Sprintf("%s%0*d%s", src[:open], width, i, src[open+end+1:]))
	}
	return slices.Clip(names), nil
}
