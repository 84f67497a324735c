package ckpt

import (
	"context"
	"net/url"

	"github.com/ckptd/ckptd/sdk/wire"
)

// WarmDataset brings a version's packs to nodes (none: the daemon's own;
// "all": every one that lives) and says how many verified bytes each has.
func (c *Client) WarmDataset(ctx context.Context, ref string, nodes []string, progress func(wire.Progress)) (*wire.WarmResult, error) {
	return stream[wire.WarmResult](ctx, c, "/v1/dataset/warm", wire.WarmRequest{Ref: ref, Nodes: nodes}, progress)
}

// LocateDataset says which nodes have how much of a version, the most first.
func (c *Client) LocateDataset(ctx context.Context, ref string) (*wire.DatasetPlaces, error) {
	return get[wire.DatasetPlaces](ctx, c, "/v1/dataset/locate", url.Values{"ref": {ref}})
}

// DatasetSettings gives the settings of the node's cache, after changing those
// that are not zero.
func (c *Client) DatasetSettings(ctx context.Context, change wire.DatasetSettings) (*wire.DatasetSettings, error) {
	if change == (wire.DatasetSettings{}) {
		return get[wire.DatasetSettings](ctx, c, "/v1/dataset/settings", nil)
	}
	return post[wire.DatasetSettings](ctx, c, "/v1/dataset/settings", change)
}
