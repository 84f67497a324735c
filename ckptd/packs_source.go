package ckptd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/remotetier/traffic"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// packRemote gives blocks from the remote tier.
type packRemote struct {
	src *remoteSource
	ref restore.ShardRef
}

func (p *packRemote) Name() string                                { return "remote" }
func (p *packRemote) Kind() packs.Kind                            { return packs.Remote }
func (p *packRemote) Whole() bool                                 { return true }
func (p *packRemote) Seal(context.Context) (*catalog.Seal, error) { return nil, nil }

func (p *packRemote) ReadBlocks(ctx context.Context, b []byte, off int64) error {
	ctx = traffic.WithClass(ctx, traffic.Dataset)
	err := p.read(ctx, b, off)
	if err != nil && ctx.Err() == nil && p.src.moved(ctx, p.ref) {
		err = p.read(ctx, b, off)
	}
	return err
}

func (p *packRemote) read(ctx context.Context, b []byte, off int64) error {
	in, bytes, err := p.src.open(ctx, p.ref)
	if err != nil {
		return err
	}
	if _, err := bytes.ReadAtContext(ctx, b, off); err != nil {
		return err
	}
	report := in.Report()
	p.src.mu.Lock()
	p.src.count(max(report.BytesRead, p.src.mu.counted))
	p.src.mu.Unlock()
	if len(report.Missing) > 0 || len(report.Corrupt) > 0 {
		p.src.n.suspect(p.ref.Set, p.ref.Rank)
	}
	return nil
}

// packPeer gives blocks from another node.
type packPeer struct {
	n          *Node
	node, addr string
	ref        restore.ShardRef
	fetch      bool // see packStep
	wrote      bool
}

// Limits of one request between nodes.
const (
	packPart      = 8 << 20          // bytes
	packPatience  = 30 * time.Second // of who asks
	packDirect    = 20 * time.Second // of who is asked and fetches
	packSecond    = 2 * time.Second  // of who is asked and waits for another in turn
	maxPackWaits  = 256              // requests that a node lets wait at a time
	maxPackAsking = 4096             // sets in one question who has what
)

func (p *packPeer) Name() string     { return "peer " + p.node }
func (p *packPeer) Kind() packs.Kind { return packs.Peer }

// Whole is false of one that may have no more than a part.
func (p *packPeer) Whole() bool { return !p.fetch || p.wrote }

func (p *packPeer) Seal(ctx context.Context) (*catalog.Seal, error) {
	if !p.Whole() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, packPatience)
	defer cancel()
	b, err := p.n.peers.get(ctx, p.addr, "/v1/peer/pack/seal", url.Values{"set": {p.ref.Set.String()}}, maxSeal)
	if p.fetch && errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it lost the pack, and may fetch it
	}
	if err != nil {
		return nil, err
	}
	return catalog.ParseSeal(b)
}

func (p *packPeer) ReadBlocks(ctx context.Context, b []byte, off int64) error {
	ctx, cancel := context.WithTimeout(ctx, packPatience)
	defer cancel()
	blocks := catalog.Blocks(int64(len(b)))
	q := url.Values{"set": {p.ref.Set.String()}, "root": {p.ref.Root.String()}, "off": {strconv.FormatInt(off, 10)}, "len": {strconv.Itoa(len(b))}}
	if p.fetch {
		q.Set("fetch", "true")
	}
	most := int64(4*blocks + len(b))
	got, err := p.n.peers.get(ctx, p.addr, "/v1/peer/pack", q, most)
	if err != nil {
		return err
	}
	if int64(len(got)) != most {
		return fmt.Errorf("%s: %w: %d bytes of %d came", p.Name(), catalog.ErrUnavailable, len(got), most)
	}
	sums, bytes := got[:4*blocks], got[4*blocks:]
	for i := range blocks {
		block := bytes[i*catalog.BlockSize : min(len(bytes), (i+1)*catalog.BlockSize)]
		if catalog.Sum32C(block) != binary.LittleEndian.Uint32(sums[4*i:]) {
			return fmt.Errorf("%s: %w: block %d changed on the way", p.Name(), catalog.ErrCorrupt, i)
		}
	}
	copy(b, bytes)
	return nil
}

// packRoutes are the other side of packPeer:
//
//	GET  /v1/peer/pack?set=…&root=…&off=…&len=…[&fetch=true]  CRC32C of each block, little-endian, then the blocks;
//	                                                          with fetch what is not there is fetched, and waited for
//	GET  /v1/peer/pack/seal?set=…                             of a pack that is whole there
//	POST /v1/peer/packs                                       how many bytes of each pack are there
//	POST /v1/peer/warm                                        brings a version's packs there
func (n *Node) packRoutes(r routes) {
	r.get("/v1/peer/pack", n.getPeerPack)
	r.get("/v1/peer/pack/seal", n.getPeerPackSeal)
	r.post("/v1/peer/packs", n.postPeerPacks)
	r.post("/v1/peer/warm", n.postPeerWarm)
}

// openForPeer opens a pack that this node has, or, when asked to, fetches.
func (n *Node) openForPeer(ctx context.Context, c *app.RequestContext, fetch bool) (*packs.Handle, error) {
	id, err := setQuery(c)
	if err != nil {
		return nil, err
	}
	ref, ok := n.packs.Known(id)
	if !ok && !fetch {
		return nil, fmt.Errorf("%v: %w: not on this node", id, fs.ErrNotExist)
	}
	if !ok {
		if ref, err = n.packRef(ctx, id); err != nil {
			return nil, err
		}
	}
	if want := c.Query("root"); want != "" && want != ref.Root.String() {
		return nil, fmt.Errorf("%v: %w: its root is %v here", id, catalog.ErrConflict, ref.Root)
	}
	h, err := n.packs.OpenFirstHand(ctx, ref)
	if err == nil && !fetch && !h.Whole() {
		err = errors.Join(fmt.Errorf("%v: %w: it is still arriving here", id, fs.ErrNotExist), h.Close())
	}
	return h, err
}

func (n *Node) getPeerPackSeal(ctx context.Context, c *app.RequestContext) error {
	h, err := n.openForPeer(ctx, c, false)
	if err != nil {
		return err
	}
	defer h.Close()
	seal := h.Seal()
	if seal == nil {
		return fmt.Errorf("%v: %w: it is not whole here", h.Ref(), fs.ErrNotExist)
	}
	c.Data(http.StatusOK, "application/octet-stream", seal.Marshal())
	return nil
}

func (n *Node) getPeerPack(ctx context.Context, c *app.RequestContext) error {
	off, err1 := strconv.ParseInt(c.Query("off"), 10, 64)
	size, err2 := strconv.ParseInt(c.Query("len"), 10, 64)
	if err1 != nil || err2 != nil || off < 0 || off%catalog.BlockSize != 0 || size < 1 || size > packPart {
		return fmt.Errorf("pack: %w: off must be a multiple of %d, and len 1 to %d", catalog.ErrInvalid, catalog.BlockSize, packPart)
	}
	select {
	case n.packWaits <- struct{}{}:
		defer func() { <-n.packWaits }()
	default:
		return fmt.Errorf("pack: %w: %d nodes wait here already; ask another", catalog.ErrUnavailable, maxPackWaits)
	}
	ctx, cancel := n.untilStop(ctx)
	defer cancel()
	h, err := n.openForPeer(ctx, c, c.Query("fetch") == "true")
	if err != nil {
		return err
	}
	defer h.Close()
	if off > h.Size()-size || size%catalog.BlockSize != 0 && off+size != h.Size() {
		return fmt.Errorf("pack: %w: %d bytes at %d are not whole blocks of its %d", catalog.ErrInvalid, size, off, h.Size())
	}
	patience := packDirect
	if !h.Direct() {
		patience = packSecond
	}
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	blocks := catalog.Blocks(size)
	b := make([]byte, int64(4*blocks)+size)
	bytes := b[4*blocks:]
	if _, err := h.ReadAt(ctx, bytes, off); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%v at %d: %w: not here within %v", h.Ref(), off, catalog.ErrUnavailable, patience)
	} else if err != nil {
		return err
	}
	for i := range blocks {
		binary.LittleEndian.PutUint32(b[4*i:], catalog.Sum32C(bytes[i*catalog.BlockSize:min(len(bytes), (i+1)*catalog.BlockSize)]))
	}
	c.Data(http.StatusOK, "application/octet-stream", b)
	return nil
}

// postPeerPacks says how much this node has of each pack.
func (n *Node) postPeerPacks(_ context.Context, c *app.RequestContext) error {
	q, err := body[wire.PacksRequest](c)
	if err != nil {
		return err
	}
	if len(q.Sets) > maxPackAsking {
		return fmt.Errorf("packs: %w: %d sets, at most %d", catalog.ErrInvalid, len(q.Sets), maxPackAsking)
	}
	a := wire.PacksAnswer{Have: make([]int64, len(q.Sets))}
	for i, s := range q.Sets {
		ref, err := catalog.ParseRef(s)
		if err != nil {
			return err
		}
		a.Have[i], _ = n.packs.Have(catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt})
	}
	return reply(c, a)
}
