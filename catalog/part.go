package catalog

import (
	"context"
	"fmt"
)

// UpdatePart changes one node's statement about a set: its votes and places.
func (c *Catalog) UpdatePart(ctx context.Context, id SetID, node string, change func(*PartRecord) error) (PartRecord, error) {
	what := func(err error) error { return fmt.Errorf("statement of %s about %v: %w", node, id, err) }
	if err := id.Check(); err != nil {
		return PartRecord{}, what(err)
	}
	if err := CheckNode(node); err != nil {
		return PartRecord{}, what(err)
	}
	p, err := update(ctx, c.parts, partKey(id, node), func(p *PartRecord, exists bool) error {
		if !exists {
			*p = PartRecord{Set: id, Node: node}
		}
		if err := change(p); err != nil {
			return err
		}
		if p.Set != id || p.Node != node {
			panic("catalog: UpdatePart changed whose statement it is")
		}
		return nil
	})
	if err != nil {
		return p, what(err)
	}
	return p, nil
}

// Parts reads what every node says about a set.
func (c *Catalog) Parts(ctx context.Context, id SetID) ([]PartRecord, error) {
	var parts []PartRecord
	for rec, err := range c.parts.List(ctx, partPrefix(id)) {
		var p PartRecord
		if err == nil {
			err = decode(rec, &p)
		}
		if err != nil {
			return nil, fmt.Errorf("statements about %v: %w", id, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// Part reads what one node says about a set; no statement is fs.ErrNotExist.
func (c *Catalog) Part(ctx context.Context, id SetID, node string) (PartRecord, error) {
	p, err := read[PartRecord](ctx, c.parts, partKey(id, node))
	if err != nil {
		return p, fmt.Errorf("statement of %s about %v: %w", node, id, err)
	}
	return p, nil
}

// WatchParts follows the statements of all nodes: those that exist, then
// synced, then each change, until ctx ends or see returns an error.
func (c *Catalog) WatchParts(ctx context.Context, see func(p *PartRecord, synced bool) error) error {
	for ch, err := range c.parts.Watch(ctx, "part") {
		if err != nil {
			return fmt.Errorf("watch statements: %w", err)
		}
		var p *PartRecord
		if !ch.Synced && ch.Value != nil {
			p = new(PartRecord)
			if decode(ch.Record, p) != nil {
				continue // its own set is stuck, and Parts says why; the others go on
			}
		}
		if err := see(p, ch.Synced); err != nil {
			return err
		}
	}
	return ctx.Err()
}
