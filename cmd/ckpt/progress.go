package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/sdk/wire"
)

// progress shows how far long work is: a bar that redraws itself on a
// terminal, otherwise a line now and then. It tells only what changes.
type progress struct {
	w     io.Writer
	bar   bool
	every time.Duration
	now   func() time.Time

	mu struct {
		sync.Mutex
		p     wire.Progress
		begin time.Time
		shown time.Time
		drawn bool
		waits string // why nothing goes on; "" when it does
	}
}

const (
	barWidth  = 24 // characters
	barEvery  = 100 * time.Millisecond
	lineEvery = 5 * time.Second
)

// progress begins to show work of total (0: unknown) units, "bytes" or "sets".
func (a *app) progress(what string, total int64, unit string) *progress {
	p := &progress{w: a.err, every: lineEvery, now: a.now}
	if a.json {
		p.w = io.Discard
	} else if terminal(a.err) {
		p.bar, p.every = true, barEvery
	}
	p.mu.p = wire.Progress{What: what, Total: total, Unit: unit}
	p.mu.begin = p.now()
	p.mu.shown = p.mu.begin
	return p
}

// terminal reports whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// add counts n more units.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.p.Done += n
	p.show(false)
}

// set takes over what the daemon tells.
func (p *progress) set(q wire.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.What == "" {
		q.What = p.mu.p.What
	}
	if q.Unit == "" {
		q.Unit = p.mu.p.Unit
	}
	p.mu.p = q
	p.show(false)
}

// end shows the last state; on a terminal it clears the bar.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar && p.mu.drawn {
		fmt.Fprintf(p.w, "\r\x1b[K")
	}
	p.mu.drawn = false
}

// show draws when it is time to. The lock is held.
func (p *progress) show(force bool) {
	now := p.now()
	if !force && now.Sub(p.mu.shown) < p.every {
		return
	}
	p.mu.shown = now
	line := progressLine(p.mu.p, now.Sub(p.mu.begin), p.bar)
	if p.mu.waits != "" {
		line = p.mu.waits
	}
	if p.bar {
		p.mu.drawn = true
		fmt.Fprintf(p.w, "\r%s\x1b[K", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// progressLine is one state in words.
func progressLine(p wire.Progress, took time.Duration, bar bool) string {
	amount := func(n int64) string {
		if p.Unit == "bytes" {
			return size(n)
		}
		return fmt.Sprintf("%d %s", n, p.Unit)
	}
	rate := 0.0
	if took > 0 {
		rate = float64(p.Done) / took.Seconds()
	}
	var b strings.Builder
	b.WriteString(p.What)
	if p.Total > 0 {
		part := min(float64(p.Done)/float64(p.Total), 1)
		if bar {
			n := int(part * barWidth)
			fmt.Fprintf(&b, " [%s%s]", strings.Repeat("#", n), strings.Repeat(".", barWidth-n))
		}
		fmt.Fprintf(&b, " %3.0f%% %s of %s", part*100, amount(p.Done), amount(p.Total))
	} else {
		fmt.Fprintf(&b, " %s", amount(p.Done))
	}
	if p.Unit == "bytes" {
		fmt.Fprintf(&b, ", %s/s", size(int64(rate)))
	}
	if rest := float64(p.Total - p.Done); rest > 0 && rate > 0 {
		fmt.Fprintf(&b, ", %s left", span(time.Duration(rest/rate*float64(time.Second))))
	}
	return b.String()
}

// wait says why nothing goes on, and since when; a nil why, that it goes on.
func (p *progress) wait(since time.Duration, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := (why == nil) != (p.mu.waits == "")
	if p.mu.waits = ""; why != nil {
		p.mu.waits = fmt.Sprintf("%s waits since %s: %v", p.mu.p.What, span(since), why)
	}
	p.show(news)
}

// total tells the end of work that was begun without knowing it.
func (p *progress) total(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.p.Total = n
}
