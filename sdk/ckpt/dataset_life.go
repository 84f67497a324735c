package ckpt

import (
	"context"
	"fmt"
	"net/url"
	"strconv"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Datasets lists the datasets, each with its newest version.
func (c *Client) Datasets(ctx context.Context) ([]wire.Dataset, error) {
	r, err := get[struct {
		Datasets []wire.Dataset `json:"datasets"`
	}](ctx, c, "/v1/datasets", nil)
	if err != nil {
		return nil, err
	}
	return r.Datasets, nil
}

// DatasetVersions lists the versions of a dataset, newest first; all adds those
// that are being written, aborted or pruned.
func (c *Client) DatasetVersions(ctx context.Context, name string, all bool) ([]wire.DatasetVersion, error) {
	r, err := get[struct {
		Versions []wire.DatasetVersion `json:"versions"`
	}](ctx, c, "/v1/dataset/versions", url.Values{"name": {name}, "all": {strconv.FormatBool(all)}})
	if err != nil {
		return nil, err
	}
	return r.Versions, nil
}

// DatasetVersion tells everything about a version: NAME@3, NAME@latest or NAME.
func (c *Client) DatasetVersion(ctx context.Context, ref string) (*wire.DatasetDetail, error) {
	return get[wire.DatasetDetail](ctx, c, "/v1/dataset", url.Values{"ref": {ref}})
}

// VerifyDataset checks every copy of a version's index and packs. Progress may
// be nil.
func (c *Client) VerifyDataset(ctx context.Context, ref string, deep bool, progress func(wire.Progress)) (*wire.VerifyResult, error) {
	return stream[wire.VerifyResult](ctx, c, "/v1/verify", wire.VerifyRequest{Ref: ref, Dataset: true, Deep: deep}, progress)
}

// RemoveDataset removes a version; one that is pinned or being read is
// ErrConflict. Its packs follow when no other version names them.
func (c *Client) RemoveDataset(ctx context.Context, ref string) (*wire.Set, error) {
	return versionSet(ref, func(set string) (*wire.Set, error) { return c.Remove(ctx, set) })
}

// PinDataset keeps a version from being removed, or lets it go.
func (c *Client) PinDataset(ctx context.Context, ref string, pinned bool) (*wire.Set, error) {
	return versionSet(ref, func(set string) (*wire.Set, error) { return c.Pin(ctx, set, pinned) })
}

// TagDataset sets tags of a version, or removes those whose value is nil.
func (c *Client) TagDataset(ctx context.Context, ref string, tags map[string]*string) (*wire.Set, error) {
	return versionSet(ref, func(set string) (*wire.Set, error) { return c.Tag(ctx, set, tags) })
}

// versionSet does something with the set that a version is.
func versionSet(ref string, do func(set string) (*wire.Set, error)) (*wire.Set, error) {
	r, err := catalog.ParseDatasetRef(ref)
	if err != nil {
		return nil, err
	}
	s, err := do(r.String())
	if err != nil {
		return nil, fmt.Errorf("dataset %s: %w", ref, err)
	}
	return s, nil
}
