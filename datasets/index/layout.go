package index

import (
	"encoding/binary"
	"time"
)

const (
	magic      = "ckptINDX"
	version    = 1
	headerSize = 4096
	align      = 64 // sections begin at multiples of it

	entrySize = 48
	hashSize  = 32
	packSize  = 80
	groupSize = 32

	tableAt       = 128 // of the sections, in the header
	sectionRecord = 32
)

// The sections, in the order they stand in.
const (
	entriesSection = iota
	namesSection
	hashesSection
	byHashSection
	packsSection
	runsSection
	groupsSection
	fieldsSection
	schemaSection
	sections
)

// Kinds of groups of samples.
const (
	groupWhole  = 1
	groupRanges = 2
	groupStride = 3

	groupVersion = 1
)

const (
	wholeSize  = 4 // bytes of a field
	rangeSize  = 16
	strideSize = 32
)

const noPack = 1<<32 - 1 // of an empty file

var le = binary.LittleEndian

func aligned(n int64) int64 { return (n + align - 1) &^ (align - 1) }

// Times are seconds from 1901 on and nanoseconds, in one word.
const (
	timeBias = 1 << 31
	maxSecs  = 1<<34 - 1 - timeBias
)

func packTime(t time.Time) uint64 {
	s, ns := t.Unix(), t.Nanosecond()
	switch {
	case s < -timeBias:
		s, ns = -timeBias, 0
	case s > maxSecs:
		s, ns = maxSecs, 999_999_999
	}
	return uint64(s+timeBias)<<30 | uint64(ns)
}

func unpackTime(w uint64) (time.Time, bool) {
	ns := int64(w & (1<<30 - 1))
	return time.Unix(int64(w>>30)-timeBias, ns).UTC(), ns < 1e9
}

// put48 and get48 are numbers of 48 bits.
func put48(b []byte, v int64) {
	le.PutUint32(b, uint32(v))
	le.PutUint16(b[4:], uint16(v>>32))
}

func get48(b []byte) int64 { return int64(le.Uint32(b)) | int64(le.Uint16(b[4:]))<<32 }

// badName says what is wrong with a name of an entry, or "".
func badName(name []byte) string {
	switch {
	case len(name) == 0:
		return "a name is empty"
	case len(name) > MaxName:
		return "a name is longer than 255 bytes"
	case name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.'):
		return `a name is "." or ".."`
	}
	for _, c := range name {
		if c == '/' || c == 0 {
			return "a name has a '/' or a NUL"
		}
	}
	return ""
}
