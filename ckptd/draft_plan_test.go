package ckptd

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

func TestPlanDraft(t *testing.T) {
	part := func(node string, names ...string) draftPart {
		p := draftPart{Node: node}
		for _, name := range names {
			p.Files = append(p.Files, draftPartFile{name, 1})
		}
		return p
	}
	for what, tt := range map[string]struct {
		order commitOrder
		parts []draftPart
		ranks string
		class error
	}{
		"one node":         {commitOrder{}, []draftPart{part("a", "y", ".x", "Z")}, "map[a:map[.x:0 Z:1 y:2]]", nil},
		"names over nodes": {commitOrder{World: 4, Nodes: 2}, []draftPart{part("b", "0", "2"), part("a", "1", "10")}, "map[a:map[1:1 10:2] b:map[0:0 2:3]]", nil},
		"one has none":     {commitOrder{}, []draftPart{part("a"), part("b", "x")}, "map[a:map[] b:map[x:0]]", nil},
		"no files":         {commitOrder{}, []draftPart{part("a")}, "", catalog.ErrInvalid},
		"an empty file":    {commitOrder{}, []draftPart{{Node: "a", Files: []draftPartFile{{"x", 0}}}}, "", catalog.ErrInvalid},
		"a path":           {commitOrder{}, []draftPart{part("a", "x/y")}, "", catalog.ErrInvalid},
		"one name twice":   {commitOrder{}, []draftPart{part("a", "x"), part("b", "x")}, "", catalog.ErrConflict},
		"not alone":        {commitOrder{Alone: true}, []draftPart{part("a", "x"), part("b", "y")}, "", catalog.ErrConflict},
		"a file missing":   {commitOrder{World: 3}, []draftPart{part("a", "x", "y")}, "", catalog.ErrIncomplete},
		"a node missing":   {commitOrder{Nodes: 2}, []draftPart{part("a", "x", "y")}, "", catalog.ErrIncomplete},
	} {
		world, ranks, err := planDraft(tt.order, tt.parts)
		if !errors.Is(err, tt.class) || tt.class == nil && err != nil {
			t.Errorf("%s: %v, want %v", what, err, tt.class)
			continue
		}
		n := 0
		for _, p := range tt.parts {
			n += len(p.Files)
		}
		if err == nil && (world != n || fmt.Sprint(ranks) != tt.ranks) {
			t.Errorf("%s: world %d, ranks %v; want %d, %s", what, world, ranks, n, tt.ranks)
		}
	}
}

func TestPlanNext(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	set := &draftSet{Prepared: now}
	in := func(s catalog.State) *catalog.SetRecord { return &catalog.SetRecord{State: s} }
	for _, tt := range []struct {
		rec         *catalog.SetRecord
		over, whole bool
		after       time.Duration
		want        whatNext
	}{
		{in(catalog.Writing), false, true, 0, makeSet},
		{in(catalog.Writing), true, false, time.Hour, makeSet},
		{in(catalog.Committed), true, false, 0, makeSet},
		{in(catalog.Aborted), false, true, 0, thaw},
		{in(catalog.Aborted), false, false, 0, discard},
		{in(catalog.Pruned), false, false, 0, discard},
		{nil, false, true, time.Minute, waitOn},
		{nil, true, true, 0, thaw},
		{nil, false, true, decidePatience + 1, thaw},
		{nil, true, false, 0, waitOn},
		{nil, false, false, decidePatience + 1, makeSet},
	} {
		if got := planNext(set, tt.rec, tt.over, tt.whole, now.Add(tt.after)); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
