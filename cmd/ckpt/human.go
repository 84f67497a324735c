package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// size prints bytes: 1.5 GiB.
func size(n int64) string {
	if n < 1<<10 && n > -1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if v /= 1 << 10; v < 1023.95 && v > -1023.95 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// since prints how long ago t was: 5s, 3m, 2h, 4d.
func (a *app) since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(a.now().Sub(t))
}

func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// clock prints a moment of a timeline.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z")
}

// parseSpan reads a duration; besides Go's units it knows d and w.
func parseSpan(s string) (time.Duration, error) {
	for unit, d := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			v, err := strconv.ParseFloat(n, 64)
			if err != nil || v < 0 || v > 36500 {
				return 0, usage("duration %q; want one like 90m, 12h, 7d or 2w", s)
			}
			return time.Duration(v * float64(d)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, usage("duration %q; want one like 90m, 12h, 7d or 2w", s)
	}
	return d, nil
}

// table aligns columns; cells are separated by tabs.
func table(w io.Writer, rows func(row func(cells ...any))) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows(func(cells ...any) {
		var line []string
		for _, c := range cells {
			line = append(line, fmt.Sprint(c))
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(line, "\t"), "\t "))
	})
	tw.Flush()
}

// pairs prints a map as k=v, sorted.
func pairs[V any](m map[string]V) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if v := fmt.Sprint(m[k]); v != "" {
			k += "=" + v
		}
		out = append(out, k)
	}
	return strings.Join(out, " ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
