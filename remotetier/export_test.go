package remotetier

import (
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// For the tests of the format: each part by itself.
var (
	Combine     = combine
	ParseSums   = parseSums
	ParseFooter = parseFooter
)

const (
	PageSize = pageSize
	PageSums = pageSums
)

// SumParity gives the parity units of data.
func SumParity(l stripe.Layout, units [][]byte) error { return codeOf(l).encode(units) }

// HeaderSeed is what the other pages' CRCs continue from.
func HeaderSeed(p []byte) (uint32, error) { _, seed, err := parseHeader(p); return seed, err }

// FooterOf decodes a whole column's footer.
func FooterOf(col []byte) (catalog.Digest, error) {
	h, seed, err := parseHeader(col[:pageSize])
	if err != nil {
		return catalog.Digest{}, err
	}
	return parseFooter(col[len(col)-pageSize:], seed, h.ColumnData())
}

// Resum makes a whole column fit its sums again after its data were changed.
func Resum(col []byte) error {
	h, seed, err := parseHeader(col[:pageSize])
	if err != nil {
		return err
	}
	data := col[pageSize:][:h.ColumnData()]
	var sums []uint32
	for at := 0; at < len(data); at += stripe.Block {
		sums = append(sums, crcOf(data[at:min(at+stripe.Block, len(data))]))
	}
	for n := range int(pages(h.ColumnData())) {
		page := col[pageSize+len(data)+n*pageSize:][:pageSize]
		clear(page)
		putSums(page, seed, n, sums[n*pageSums:min(len(sums), (n+1)*pageSums)])
	}
	return nil
}

// OpKind is a kind of operation.
type OpKind = opKind

// Health is the state machine of one target's operations.
type Health struct{ h health }

const (
	Answers = answers
	Reads   = reads
	Begins  = begins
	Writes  = writes
	Commits = commits
)

func (h *Health) OK(kind opKind, now time.Time)              { h.h.ok(kind, now) }
func (h *Health) Fail(kind opKind, err error, now time.Time) { h.h.fail(kind, err, now) }
func (h *Health) State() catalog.TargetState                 { return h.h.state() }
func (h *Health) Rests(now time.Time) bool                   { return h.h.rests(now) }

var (
	Ill   = ill
	Worse = worse
)
