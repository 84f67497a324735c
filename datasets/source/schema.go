package source

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"
)

// maxKinds bounds the fields, rows and columns that a schema lists.
const maxKinds = 64

// Schema says what the samples are, in a few hundred bytes of JSON.
type Schema struct {
	Format Format   `json:"format"`
	Fields []string `json:"fields,omitempty"`  // extensions of a WebDataset's members
	Rows   []Row    `json:"rows,omitempty"`    // of .npy: one when all files agree
	Column []Column `json:"columns,omitempty"` // of MDS and Parquet
	More   bool     `json:"more,omitempty"`    // there are kinds that are not listed
}

// Row is what one sample of an array is.
type Row struct {
	DType string  `json:"dtype"` // numpy's, such as "<f4"
	Shape []int64 `json:"shape"`
}

// Column is one part of a sample that has several.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
}

func (s Schema) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("source: " + err.Error()) // strings and numbers alone
	}
	return string(b)
}

// kinds collects what files say of their samples, from any goroutine. What
// comes out is in the order of its text, so that it depends on the set alone.
type kinds struct {
	mu struct {
		sync.Mutex
		seen map[string]any
		more bool
	}
}

func (k *kinds) add(key string, v any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.mu.seen[key]; ok {
		return
	}
	if k.mu.seen == nil {
		k.mu.seen = make(map[string]any)
	}
	k.mu.seen[key] = v
	if len(k.mu.seen) > maxKinds {
		// The last ones in order go, whatever came first.
		keys := slices.Sorted(maps.Keys(k.mu.seen))
		delete(k.mu.seen, keys[len(keys)-1])
		k.mu.more = true
	}
}

func (k *kinds) schema(f Format) Schema {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Schema{Format: f, More: k.mu.more}
	for _, key := range slices.Sorted(maps.Keys(k.mu.seen)) {
		switch v := k.mu.seen[key].(type) {
		case string:
			s.Fields = append(s.Fields, v)
		case Row:
			s.Rows = append(s.Rows, v)
		case Column:
			s.Column = append(s.Column, v)
		}
	}
	return s
}
