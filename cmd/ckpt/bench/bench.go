// Package bench measures ckptd against the plainest programs that do the same
// work, on this machine, now.
//
//  1. Product and yardstick take turns in one run (A B A B …), and a bar is the
//     median of the pairs' ratios: a disk whose rate swings does not decide it.
//  2. The product is what users get: a ckptd process of its own, and the Go SDK.
//  3. Every byte that was moved is compared, outside the time that is measured.
//  4. Data is incompressible, and lies on a real disk: a tmpfs is refused.
//  5. However a run ends, also by Ctrl-C, its processes, files and shared
//     memory are gone.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Options of a run; the zero value works.
type Options struct {
	Suite  string       // save, restore, drain, fabric, repair, catalog, order, dataset, mount, au or all; default all, which leaves au out
	Size   int64        // bytes of a checkpoint, default 1 GiB
	Pairs  int          // of product and yardstick, default 5
	Dir    string       // on the disk to measure; default below the user's cache directory
	Daemon string       // path of ckptd; default beside this program, else from PATH
	Full   bool         // the sizes of the bars themselves where the default is scaled: 10 GiB of drain
	Log    func(string) // told what is being done; nil: off
}

func (o Options) withDefaults() (Options, error) {
	if o.Suite == "" {
		o.Suite = "all"
	}
	if o.Size == 0 {
		o.Size = 1 << 30
	}
	if o.Pairs == 0 {
		o.Pairs = 5
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	switch {
	case o.Suite != "all" && !slices.ContainsFunc(suites, func(s suite) bool { return s.name == o.Suite }):
		return o, fmt.Errorf("bench %q: %w: want save, restore, drain, fabric, repair, catalog, order, dataset, mount, au, all or model", o.Suite, catalog.ErrInvalid)
	case o.Size < 16<<20 || o.Size%(4<<20) != 0:
		return o, fmt.Errorf("size %d: %w: want a multiple of 4 MiB, at least 16 MiB", o.Size, catalog.ErrInvalid)
	case o.Pairs < 1 || o.Pairs > 1000:
		return o, fmt.Errorf("%d pairs: %w: want 1 to 1000", o.Pairs, catalog.ErrInvalid)
	}
	return o, nil
}

// suites in the order in which `all` runs them. Each begins with a daemon of
// its own and an empty disk.
type suite struct {
	name string
	run  func(context.Context, *bench) error
}

var suites = []suite{{"save", benchSave}, {"restore", benchRestore}, {"drain", benchDrain}, {"fabric", benchFabric}, {"repair", benchRepair}, {"catalog", benchCatalog}, {"order", benchOrder}, {"dataset", benchDataset}, {"dataset", benchImport}, {"dataset", benchFind}, {"mount", benchMount}, {"au", benchAU}}

// Report is what a run found.
type Report struct {
	Bars    []Bar   `json:"bars"`
	Machine Machine `json:"machine"`
}

// OK says that every bar was reached.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Bars, func(b Bar) bool { return !b.OK })
}

// Bar is one figure. Where there is a yardstick, reach is a limit of ratio,
// otherwise of value; 0 is no limit: the figure is only reported.
type Bar struct {
	Name      string   `json:"name"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	Yardstick *float64 `json:"yardstick"` // null: the bar is a limit of its own
	Ratio     *float64 `json:"ratio"`     // of the pairs, their median
	Reach     float64  `json:"reach"`
	Better    string   `json:"better"` // lower or higher
	OK        bool     `json:"ok"`
	Detail    string   `json:"detail"`
}

// goals are the bars of the project, by name.
var goals = map[string]struct {
	unit   string
	reach  float64
	better string
}{
	"save.stall":            {"s", 1.25, "lower"},
	"save.durable.1":        {"B/s", 0.90, "higher"},
	"save.durable.4":        {"B/s", 0.90, "higher"},
	"commit.p99":            {"s", 0.050, "lower"},
	"restore.local":         {"B/s", 0.90, "higher"},
	"load.mmap":             {"s", 1.3, "lower"},
	"load.mmap.unchecked":   {"s", 1.05, "lower"},
	"drain.cpu":             {"s/GiB", 1.2, "lower"},
	"restore.remote.cpu":    {"s/GiB", 1.2, "lower"},
	"restore.degraded.cpu":  {"s/GiB", 1.2, "lower"},
	"restore.amplification": {"B/B", 1.05, "lower"},
	"fabric.tcp":            {"B/s", 0.80, "higher"},
	"repair.cpu":            {"s/GiB", 1.2, "lower"},
	"target.memory":         {"B", targetBuffers + 64<<20, "lower"},
	"daemon.memory":         {"B", 256 << 20, "lower"},
	"catalog.latest":        {"s", 0.005, "lower"},
	"catalog.list":          {"s", 0.050, "lower"},
	"order.index":           {"ns", 300, "lower"},
	"order.index.window":    {"ns", 300, "lower"},
	"dataset.epoch":         {"B/s", 0.80, "higher"},
	"dataset.import":        {"B/s", 0.50, "higher"},
	"dataset.find":          {"/s", 0.30, "higher"},
	"dataset.find.memory":   {"B", 64 << 20, "lower"},
	"mount.seq":             {"B/s", 0.90, "higher"},
	"mount.rand4k":          {"B/s", 0.80, "higher"},
	"mount.write":           {"B/s", 0.85, "higher"},
	"mount.small":           {"/s", 0, "higher"}, // without a reach: reported only
	"au.resnet50":           {"", 0, "higher"},
	"au.unet3d":             {"", 0, "higher"},
	"au.cosmoflow":          {"", 0, "higher"},
	"au.retinanet":          {"", 0, "higher"},
	"compress.ratio":        {"", 0, "lower"}, // without a reach: reported only
	"compress.encode":       {"B/s", 0, "higher"},
	"compress.decode":       {"B/s", 0, "higher"},
}

// bench is one run.
type bench struct {
	opt    Options
	ckptd  string // path of the daemon's program
	dir    string // ours alone, on the disk
	run    string // ours alone, for sockets: a short path
	arenas string // ours alone, in shared memory
	report *Report
}

// Run measures. The error is about the run itself; bars that are missed are
// told by Report.OK.
func Run(ctx context.Context, opt Options) (_ *Report, err error) {
	if opt, err = opt.withDefaults(); err != nil {
		return nil, err
	}
	b := &bench{opt: opt, report: &Report{Bars: []Bar{}}}
	clean, err := b.prepare()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, clean()) }()
	b.report.Machine = machineOf(b.dir)
	for _, s := range suites {
		if opt.Suite != s.name && (opt.Suite != "all" || s.name == "au") { // au takes minutes, and has no bar
			continue
		}
		if err := s.run(ctx, b); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return b.report, fmt.Errorf("bench %s: %w", s.name, err)
		}
	}
	return b.report, nil
}

// versus adds a bar with a yardstick. product and yardstick are in the bar's
// own unit, pair by pair.
func (b *bench) versus(name string, product, yardstick []float64, format string, args ...any) {
	b.versusAs(name, name, product, yardstick, format, args...)
}

// versusAs is versus with the goal of another name.
func (b *bench) versusAs(name, goal string, product, yardstick []float64, format string, args ...any) {
	ratios := make([]float64, len(product))
	for i := range product {
		ratios[i] = product[i] / yardstick[i]
	}
	ratio, yard := median(ratios), median(yardstick)
	bar := b.bar(goal, median(product), ratio)
	bar.Name = name
	bar.Yardstick, bar.Ratio = &yard, &ratio
	bar.Detail = fmt.Sprintf(format, args...) + fmt.Sprintf("; %d pairs, ratios %.2f to %.2f", len(ratios), slices.Min(ratios), slices.Max(ratios))
	b.add(bar)
}

// limit adds a bar that is a limit of its own.
func (b *bench) limit(name string, value float64, format string, args ...any) {
	bar := b.bar(name, value, value)
	bar.Detail = fmt.Sprintf(format, args...)
	b.add(bar)
}

func (b *bench) bar(name string, value, held float64) Bar {
	g, ok := goals[name]
	if !ok {
		panic("bench: no such bar: " + name)
	}
	good := held <= g.reach || g.reach == 0
	if g.better == "higher" {
		good = held >= g.reach
	}
	return Bar{Name: name, Value: value, Unit: g.unit, Reach: g.reach, Better: g.better, OK: good && !math.IsNaN(held)}
}

func (b *bench) add(bar Bar) {
	b.report.Bars = append(b.report.Bars, bar)
	b.opt.Log(bar.line())
}

func (b *bench) logf(format string, args ...any) { b.opt.Log(fmt.Sprintf(format, args...)) }

// median of a non-empty list.
func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile by the nearest rank; of an even number's median, the mean of both.
func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return math.NaN()
	}
	if q == 0.5 && n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[min(n-1, max(0, int(math.Ceil(q*float64(n)))-1))]
}

// Print writes the table for people.
func (r *Report) Print(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s\n\n%-22s %12s %12s %7s %9s\n", r.Machine, "", "measured", "yardstick", "ratio", "reach"); err != nil {
		return err
	}
	for i := range r.Bars {
		if _, err := fmt.Fprintf(w, "%s\n%24s%s\n", r.Bars[i].line(), "", r.Bars[i].Detail); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bar) line() string {
	mark, sign := "ok", "<="
	if !b.OK {
		mark = "MISSED"
	}
	if b.Better == "higher" {
		sign = ">="
	}
	yard, ratio, reach := "", "", amount(b.Reach, b.Unit)
	if b.Yardstick != nil {
		yard, ratio, reach = amount(*b.Yardstick, b.Unit), fmt.Sprintf("%.2f", *b.Ratio), fmt.Sprintf("%.2f", b.Reach)
	}
	if b.Reach == 0 {
		return fmt.Sprintf("%-22s %12s %12s %7s", b.Name, amount(b.Value, b.Unit), yard, ratio)
	}
	return fmt.Sprintf("%-22s %12s %12s %7s %s %-9s %s", b.Name, amount(b.Value, b.Unit), yard, ratio, sign, reach, mark)
}

// amount prints a value of a bar's unit.
func amount(v float64, unit string) string {
	switch unit {
	case "s":
		if v < 1 {
			return fmt.Sprintf("%.2f ms", v*1e3)
		}
		return fmt.Sprintf("%.2f s", v)
	case "B/s":
		return fmt.Sprintf("%.2f GB/s", v/1e9)
	case "B":
		return fmt.Sprintf("%.0f MiB", v/(1<<20))
	}
	return strings.TrimSpace(fmt.Sprintf("%.3f %s", v, unit))
}
