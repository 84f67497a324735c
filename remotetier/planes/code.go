package planes

import (
	"errors"
	"fmt"
)

// The forms of a frame, and the codings of a plane.
const (
	formRaw  = 0
	formRuns = 1

	asIs   = 0
	zipped = 1
)

// encode appends a frame onto dst: raw cut into runs, or as it is when that is
// no longer. tmp is as long as raw.
func (c *coder) encode(dst, raw, tmp []byte, runs []Run) []byte {
	was := len(dst)
	dst = append(dst, formRuns, 0, 0, 0)
	le.PutUint16(dst[was+2:], uint16(len(runs)))
	table := len(dst)
	for _, r := range runs {
		dst = append(dst, make([]byte, 8+4*r.Width)...)
	}
	for _, r := range runs {
		src := raw[r.Off:][:r.Size]
		if r.Width > 1 {
			group(tmp[:r.Size], src, r.Width)
			src = tmp[:r.Size]
		}
		le.PutUint32(dst[table:], uint32(r.Size))
		le.PutUint32(dst[table+4:], uint32(r.Width))
		table += 8
		n := int(r.Size) / r.Width
		for j := range r.Width {
			plane, at := src[j*n:][:n], len(dst)
			coding := uint32(zipped)
			var ok bool
			if dst, ok = c.append(dst, plane, r.Width > 1); !ok {
				coding = asIs
				dst = append(dst, plane...)
			}
			le.PutUint32(dst[table:], uint32(len(dst)-at)|coding<<24)
			table += 4
		}
	}
	if len(dst)-was > len(raw) {
		dst = append(append(dst[:was], formRaw), raw...)
	}
	return dst
}

// decode fills raw from a frame's stored bytes, with tmp, which is as long, for
// the planes. Errors have no class: all are corruption.
func decode(raw, stored, tmp []byte) error {
	switch {
	case len(stored) == 0:
		return errors.New("it is empty")
	case stored[0] == formRaw && len(stored) == len(raw)+1:
		copy(raw, stored[1:])
		return nil
	case stored[0] != formRuns || len(stored) < 4 || stored[1] != 0:
		return fmt.Errorf("form %d of %d bytes for %d", stored[0], len(stored), len(raw))
	}
	runs := int(le.Uint16(stored[2:]))
	if runs < 1 || runs > maxRuns {
		return fmt.Errorf("%d runs", runs)
	}
	// The table first, so that the planes' bytes are known to be there.
	table, data := stored[4:], 0
	sum, planes := 0, 0
	for range runs {
		if len(table) < 8 {
			return errors.New("the table of runs is cut short")
		}
		size, width := le.Uint32(table), int(le.Uint32(table[4:]))
		if width != 1 && width != 2 && width != 4 && width != 8 {
			return fmt.Errorf("elements of %d bytes", width)
		}
		if size == 0 || size > Size || int(size)%width != 0 {
			return fmt.Errorf("a run of %d bytes of elements of %d", size, width)
		}
		if table = table[8:]; len(table) < 4*width {
			return errors.New("the table of runs is cut short")
		}
		for j := range width {
			v := le.Uint32(table[4*j:])
			if v>>24 > zipped || v>>24 == asIs && int(v) != int(size)/width {
				return fmt.Errorf("a plane of coding %d", v>>24)
			}
			data += int(v & 0xffffff)
		}
		table = table[4*width:]
		sum += int(size)
		planes += width
	}
	if sum != len(raw) || data != len(table) {
		return fmt.Errorf("runs of %d bytes and planes of %d; want %d and %d", sum, data, len(raw), len(table))
	}
	return decodeRuns(raw, stored[4:], table, tmp, runs)
}

// decodeRuns does the planes; the table was checked.
func decodeRuns(raw, table, data, tmp []byte, runs int) error {
	for range runs {
		size, width := int(le.Uint32(table)), int(le.Uint32(table[4:]))
		table = table[8:]
		dst := raw[:size]
		if width > 1 {
			dst = tmp[:size]
		}
		n := size / width
		for j := range width {
			v := le.Uint32(table[4*j:])
			stored := data[:v&0xffffff]
			data = data[len(stored):]
			if plane := dst[j*n:][:n]; v>>24 == asIs {
				copy(plane, stored)
			} else if err := expand(plane, stored); err != nil {
				return err
			}
		}
		if width > 1 {
			ungroup(raw[:size], dst, width)
		}
		table, raw = table[4*width:], raw[size:]
	}
	return nil
}
