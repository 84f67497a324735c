package ckpt

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Attach begins a launch of a run and gives its attempt: the same number for
// every rank of one launch. Everything older is fenced from then on.
func (c *Client) Attach(ctx context.Context, run, launch string, world int) (int, error) {
	r, err := post[wire.AttachReply](ctx, c, "/v1/attach", wire.AttachRequest{Run: run, Launch: launch, World: world})
	if err != nil {
		return 0, fmt.Errorf("attach to %s: %w", run, err)
	}
	return r.Attempt, nil
}

// Status tells how the node is and what is wrong with it.
func (c *Client) Status(ctx context.Context) (*wire.Status, error) {
	return get[wire.Status](ctx, c, "/v1/status", nil)
}

// Runs lists every run.
func (c *Client) Runs(ctx context.Context) ([]wire.Run, error) {
	r, err := get[struct{ Runs []wire.Run }](ctx, c, "/v1/runs", nil)
	if err != nil {
		return nil, err
	}
	return r.Runs, nil
}

// Sets lists the sets of a run, newest first; with all also those that are
// being written, aborted or pruned.
func (c *Client) Sets(ctx context.Context, run string, all bool) ([]wire.Set, error) {
	r, err := get[struct{ Sets []wire.Set }](ctx, c, "/v1/sets", url.Values{"run": {run}, "all": {strconv.FormatBool(all)}})
	if err != nil {
		return nil, err
	}
	return r.Sets, nil
}

// Set tells everything about a set.
func (c *Client) Set(ctx context.Context, ref string, tensors bool) (*wire.SetDetail, error) {
	return get[wire.SetDetail](ctx, c, "/v1/set", url.Values{"ref": {ref}, "tensors": {strconv.FormatBool(tensors)}})
}

// Resolve tells which set a reference names, and its state: Set without the
// shards and the story, which take longer to find.
func (c *Client) Resolve(ctx context.Context, ref string) (*wire.Set, error) {
	d, err := get[wire.SetDetail](ctx, c, "/v1/set", url.Values{"ref": {ref}, "brief": {"true"}})
	if err != nil {
		return nil, err
	}
	return &d.Set, nil
}

// Manifest gives the list of a set's shards and tensors.
func (c *Client) Manifest(ctx context.Context, ref string) (*catalog.Manifest, error) {
	b, err := c.ManifestBytes(ctx, ref)
	if err != nil {
		return nil, err
	}
	return catalog.ParseManifest(b, catalog.Digest{})
}

// ManifestBytes gives the manifest as it is stored.
func (c *Client) ManifestBytes(ctx context.Context, ref string) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/manifest", url.Values{"ref": {ref}}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, catalog.MaxManifestSize+1))
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w: %w", ref, catalog.ErrUnavailable, err)
	}
	return b, nil
}

// Why tells a set's story and what it lacks.
func (c *Client) Why(ctx context.Context, ref string) (*wire.Why, error) {
	return get[wire.Why](ctx, c, "/v1/why", url.Values{"ref": {ref}})
}

// Tag sets tags of a set; a nil value removes one.
func (c *Client) Tag(ctx context.Context, ref string, tags map[string]*string) (*wire.Set, error) {
	return post[wire.Set](ctx, c, "/v1/tag", wire.TagRequest{Ref: ref, Tags: tags})
}

// Pin keeps a set whatever the retention says, until it is unpinned.
func (c *Client) Pin(ctx context.Context, ref string, pinned bool) (*wire.Set, error) {
	return post[wire.Set](ctx, c, "/v1/pin", wire.PinRequest{Ref: ref, Pinned: pinned})
}

// Remove makes a set invisible; its bytes go after the grace.
func (c *Client) Remove(ctx context.Context, ref string) (*wire.Set, error) {
	return post[wire.Set](ctx, c, "/v1/remove", wire.RemoveRequest{Ref: ref})
}

// Prune applies a retention (nil: the run's policy) and tells what goes, what
// stays, and why. A dry run only tells.
func (c *Client) Prune(ctx context.Context, run string, keep *catalog.Retention, dryRun bool) (*wire.Prune, error) {
	return post[wire.Prune](ctx, c, "/v1/prune", wire.PruneRequest{Run: run, Retention: keep, DryRun: dryRun})
}

// Policy gives the policy of a run.
func (c *Client) Policy(ctx context.Context, run string) (catalog.Policy, error) {
	r, err := get[wire.PolicyRequest](ctx, c, "/v1/policy", url.Values{"run": {run}})
	if err != nil {
		return catalog.Policy{}, err
	}
	return r.Policy, nil
}

// SetPolicy replaces the policy of a run.
func (c *Client) SetPolicy(ctx context.Context, run string, p catalog.Policy) (catalog.Policy, error) {
	r, err := post[wire.PolicyRequest](ctx, c, "/v1/policy", wire.PolicyRequest{Run: run, Policy: p})
	if err != nil {
		return catalog.Policy{}, err
	}
	return r.Policy, nil
}

// Verify checks every copy of a set (ref), or of all sets (ref ""); deep also
// reads the BLAKE3 of each. Progress may be nil.
func (c *Client) Verify(ctx context.Context, ref string, deep bool, progress func(wire.Progress)) (*wire.VerifyResult, error) {
	return stream[wire.VerifyResult](ctx, c, "/v1/verify", wire.VerifyRequest{Ref: ref, All: ref == "", Deep: deep}, progress)
}

// Rebuild recreates the catalog from the tiers alone.
func (c *Client) Rebuild(ctx context.Context, progress func(wire.Progress)) (*wire.RebuildResult, error) {
	return stream[wire.RebuildResult](ctx, c, "/v1/catalog/rebuild", struct{}{}, progress)
}

// Fsck compares the catalog with the tiers and, asked to, mends it.
func (c *Client) Fsck(ctx context.Context, mend bool, progress func(wire.Progress)) (*wire.FsckResult, error) {
	return stream[wire.FsckResult](ctx, c, "/v1/catalog/fsck", wire.FsckRequest{Mend: mend}, progress)
}

// Nodes lists every daemon the catalog knows.
func (c *Client) Nodes(ctx context.Context) ([]wire.Node, error) {
	r, err := get[struct{ Nodes []wire.Node }](ctx, c, "/v1/nodes", nil)
	if err != nil {
		return nil, err
	}
	return r.Nodes, nil
}

// Targets lists the places of the remote tier, with the version of the map
// that they are members of.
func (c *Client) Targets(ctx context.Context) (*wire.Targets, error) {
	return get[wire.Targets](ctx, c, "/v1/targets", nil)
}

// AddTarget enters a target into the map; spec is as for ckptd serve --remote.
func (c *Client) AddTarget(ctx context.Context, spec string) (*wire.Target, error) {
	return post[wire.Target](ctx, c, "/v1/targets/add", wire.TargetAddRequest{Spec: spec})
}

// RemoveTarget takes a target out of the map: one that is drained, or by force.
// node is only for a target that another node has to itself.
func (c *Client) RemoveTarget(ctx context.Context, name, node string, force bool) (*wire.Target, error) {
	return post[wire.Target](ctx, c, "/v1/targets/remove", wire.TargetRemoveRequest{Name: name, Node: node, Force: force})
}

// DrainTarget moves the columns of a target away. With wait it tells of the
// progress and returns when the target may be removed; the daemons go on
// without the caller. undo takes a drain back.
func (c *Client) DrainTarget(ctx context.Context, name, node string, undo, wait bool, progress func(wire.Progress)) (*wire.Target, error) {
	return stream[wire.Target](ctx, c, "/v1/targets/drain", wire.TargetDrainRequest{Name: name, Node: node, Undo: undo, Wait: wait}, progress)
}

// RebalanceTargets moves columns from the fullest targets to the emptiest. A dry
// run only tells.
func (c *Client) RebalanceTargets(ctx context.Context, dryRun bool, progress func(wire.Progress)) (*wire.RebalanceResult, error) {
	return stream[wire.RebalanceResult](ctx, c, "/v1/targets/rebalance", wire.RebalanceRequest{DryRun: dryRun}, progress)
}

// Repair looks at every column of a run, or ("") of all runs, and mends what is
// wrong at once. Without wait the daemon does it in the background.
func (c *Client) Repair(ctx context.Context, run string, wait bool, progress func(wire.Progress)) (*wire.RepairResult, error) {
	return stream[wire.RepairResult](ctx, c, "/v1/repair", wire.RepairRequest{Run: run, Wait: wait}, progress)
}

// Scrub looks at every byte of every column of a target, or ("") of all, where
// it lies, and mends what is wrong. Without wait the daemons do it in the
// background.
func (c *Client) Scrub(ctx context.Context, target string, wait bool, progress func(wire.Progress)) (*wire.ScrubResult, error) {
	return stream[wire.ScrubResult](ctx, c, "/v1/scrub", wire.ScrubRequest{Target: target, Wait: wait}, progress)
}

// Watch gives sets as they change, of one run or ("") of all, until ctx ends
// or the daemon leaves.
func (c *Client) Watch(ctx context.Context, run string) iter.Seq2[wire.Set, error] {
	return func(yield func(wire.Set, error) bool) {
		query := url.Values{}
		if run != "" {
			query.Set("run", run)
		}
		err := c.lines(ctx, http.MethodGet, "/v1/watch", query, nil, nil, func(raw []byte) error {
			var set wire.Set
			if err := json.Unmarshal(raw, &set); err != nil {
				return fmt.Errorf("watch: %w: %w", catalog.ErrUnavailable, err)
			}
			if !yield(set, nil) {
				return errStop
			}
			return nil
		})
		if err != nil {
			yield(wire.Set{}, err)
		}
	}
}
