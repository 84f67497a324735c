package remotetier

import (
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
