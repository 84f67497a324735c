package source

import (
	"bytes"
	"errors"
	"io"
	"iter"
)

const lineBuffer = 256 << 10 // bytes read at a time

// jsonlRecords gives every line that is not blank, without its end. A line may
// be of any length; a last one without a newline counts. Lines are not parsed:
// what a line holds is for its reader.
func jsonlRecords(r io.ReaderAt, size int64) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		buf := make([]byte, min(lineBuffer, size))
		begin := int64(0)     // of the line at hand
		blank := true         // so far
		last := int64(0)      // end of its last byte that is not white
		first := int64(0)     // its first byte that is not white
		line := func() bool { // gives the line at hand
			return blank || yield(Range{first, last - first}, nil)
		}
		for begin < size {
			n, err := r.ReadAt(buf[:min(int64(len(buf)), size-begin)], begin)
			if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
				yield(Range{}, err)
				return
			}
			for at := 0; at < n; {
				end := bytes.IndexByte(buf[at:n], '\n')
				part := buf[at:n]
				if end >= 0 {
					part = buf[at : at+end]
				}
				if left := bytes.TrimLeft(part, " \t\r"); len(left) > 0 {
					off := begin + int64(at)
					if blank {
						first, blank = off+int64(len(part)-len(left)), false
					}
					last = off + int64(len(bytes.TrimRight(part, " \t\r")))
				}
				if end < 0 {
					break
				}
				if !line() {
					return
				}
				blank = true
				at += end + 1
			}
			begin += int64(n)
		}
		line()
	}
}
