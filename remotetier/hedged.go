package remotetier

import (
	"context"
	"errors"
	"time"

	"github.com/ckptd/ckptd/remotetier/stripe"
)

// hedge is the rebuild of one segment, beside the read that is late.
type hedge struct {
	done chan struct{} // closed when it is over; what follows is set before
	loan *loan         // holds out; nil: it came to nothing
	out  []byte        // the segment's bytes
}

// readHedged is readSegment, hedged: it returns when the read or the rebuild has
// the bytes, and both have ended. The rebuild works in memory of its own, so
// that nobody but the read writes to p, and nobody at all after the return.
func (r *Reader) readHedged(ctx context.Context, p []byte, g stripe.Segment, rg stripe.Range) error {
	target, begin := r.place.Targets[g.Column], time.Now()
	after, known := r.tier.hedges.late(g.Len)
	if !known || r.layout.M == 0 {
		err := r.readSegment(ctx, p, g, rg)
		if err == nil {
			r.tier.hedges.done(target, g.Len, time.Since(begin))
		}
		return err
	}
	// Who wins ends the context of both.
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &hedge{done: make(chan struct{})}
	timer := time.AfterFunc(after, func() {
		defer close(h.done)
		if r.hedge(both, h, g, rg) {
			cancel()
		}
	})
	err := r.readSegment(both, p, g, rg)
	if err == nil {
		r.tier.hedges.done(target, g.Len, time.Since(begin))
	}
	if timer.Stop() { // as nearly always
		return err
	}
	if err == nil {
		cancel()
	}
	<-h.done
	if h.loan == nil {
		return err
	}
	defer h.loan.done()
	if err == nil {
		return nil
	}
	copy(p[g.Pos:][:g.Len], h.out)
	r.hedged.Add(1)
	if errors.Is(err, context.Canceled) { // it was late, rather than failed
		r.tier.hedges.lost(target, time.Now())
	}
	if f := r.tier.opt.Trace.Hedged; f != nil {
		f(r.place.Blob, g.Column, target, after)
	}
	return nil
}

// hedge rebuilds a segment from the columns it is not in, if that is within
// the budget and the memory at hand.
func (r *Reader) hedge(ctx context.Context, h *hedge, g stripe.Segment, rg stripe.Range) (won bool) {
	loan := r.tier.bufs.tryTake(r.layout.Columns(), int(rg.Len))
	if loan == nil {
		return false
	}
	if !r.tier.hedges.spend(r.layout.K) {
		loan.done()
		return false
	}
	bufs := make([][]byte, r.layout.Columns())
	for i := range bufs {
		bufs[i] = loan.buf(i)[:rg.Len]
	}
	units, err := r.gather(ctx, bufs, rg.Off, g.Column)
	if err == nil {
		err = codeOf(r.layout).rebuild(units, []int{g.Column})
	}
	if err != nil {
		loan.done()
		return false
	}
	h.loan, h.out = loan, units[g.Column][g.Off-rg.Off:][:g.Len]
	return true
}
