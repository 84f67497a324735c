package ckptd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/restore"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Daemons talk to each other over the same HTTP listener, under /v1/peer:
//
//	PUT  /v1/peer/manifest?set=RUN@STEP#ATTEMPT     keeps a manifest durably
//	GET  /v1/peer/manifest?set=…
//	GET  /v1/peer/seal?set=…&rank=N[&raw=true]
//	GET  /v1/peer/shard?set=…&rank=N[&raw=true]&off=…&len=…    bytes of whole blocks; raw of a raw shard
//	POST /v1/peer/rebuild                            states what that node's disks hold
//
// The bytes of a shard are checked by the one who asked, against the seal
// whose root the catalog names.

type peerClient struct {
	http  *http.Client
	proto string
	token string
}

func newPeerClient(cfg Config) (peerClient, error) {
	c := peerClient{proto: "http", token: cfg.Token}
	transport := &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: 30 * time.Second}
	if cfg.TLSCert != "" {
		c.proto = "https"
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13}
		if cfg.TLSCA != "" {
			pem, err := os.ReadFile(cfg.TLSCA)
			if err != nil {
				return c, fmt.Errorf("TLS authorities: %w", err)
			}
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(pem) {
				return c, fmt.Errorf("TLS authorities in %s: %w: no certificate", cfg.TLSCA, catalog.ErrInvalid)
			}
			transport.TLSClientConfig.RootCAs = pool
		}
	}
	c.http = &http.Client{Transport: transport}
	return c, nil
}

// call sends one request; the caller closes the body.
func (c peerClient) call(ctx context.Context, method, addr, path string, query url.Values, body []byte) (io.ReadCloser, error) {
	u := url.URL{Scheme: c.proto, Host: addr, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("node at %s: %w: %v", addr, catalog.ErrUnavailable, err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	var e struct{ Error *wire.Error }
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(b, &e) == nil && e.Error != nil {
		return nil, fmt.Errorf("node at %s: %w", addr, e.Error)
	}
	return nil, fmt.Errorf("node at %s: %w: status %d", addr, catalog.ErrUnavailable, res.StatusCode)
}

func (c peerClient) putManifest(ctx context.Context, addr string, id catalog.SetID, b []byte) error {
	body, err := c.call(ctx, http.MethodPut, addr, "/v1/peer/manifest", url.Values{"set": {id.String()}}, b)
	if err != nil {
		return err
	}
	return body.Close()
}

func (c peerClient) getManifest(ctx context.Context, addr string, id catalog.SetID) ([]byte, error) {
	return c.get(ctx, addr, "/v1/peer/manifest", url.Values{"set": {id.String()}}, catalog.MaxManifestSize)
}

func (c peerClient) get(ctx context.Context, addr, path string, query url.Values, most int64) ([]byte, error) {
	body, err := c.call(ctx, http.MethodGet, addr, path, query, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, most+1))
	if err != nil {
		return nil, fmt.Errorf("node at %s: %w: %v", addr, catalog.ErrUnavailable, err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("node at %s: %w: an answer of more than %d bytes", addr, catalog.ErrCorrupt, most)
	}
	return b, nil
}

// peerSource reads a shard from another node's disks.
type peerSource struct {
	n    *Node
	node catalog.NodeRecord

	mu struct {
		sync.Mutex
		seal *catalog.Seal // asked for once a fetch
	}
}

func (p *peerSource) Name() string { return "peer " + p.node.Name }

func (p *peerSource) seal(ctx context.Context, shard restore.ShardRef, q url.Values) (*catalog.Seal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.seal != nil {
		return p.mu.seal, nil
	}
	b, err := p.n.peers.get(ctx, p.node.Addr, "/v1/peer/seal", q, maxSeal)
	if err != nil {
		return nil, err
	}
	seal, err := catalog.ParseSeal(b)
	if err != nil {
		return nil, err
	}
	if seal.Root() != shard.Root {
		return nil, fmt.Errorf("%v: %w: the copy of %s is another", shard, catalog.ErrCorrupt, p.node.Name)
	}
	p.mu.seal = seal
	return seal, nil
}

// maxSeal bounds an encoded seal, in bytes: four for each block and its parts.
const maxSeal = 4*catalog.MaxShardSize/catalog.BlockSize + catalog.MaxSealInfo + 64<<10

func (p *peerSource) ReadRanges(ctx context.Context, shard restore.ShardRef, ranges [][2]int64, w io.WriterAt) (restore.Report, error) {
	q := url.Values{"set": {shard.Set.String()}, "rank": {strconv.Itoa(shard.Rank)}}
	if shard.Raw {
		q.Set("raw", "true")
	}
	seal, err := p.seal(ctx, shard, q)
	if err != nil {
		return restore.Report{}, err
	}
	return copyBlocks(ctx, seal, &peerReader{ctx: ctx, p: p, q: q, size: seal.Size}, ranges, w)
}

// peerReader reads ahead over HTTP, so that a range costs one request for
// each peerChunk and not one for each block.
type peerReader struct {
	ctx  context.Context
	p    *peerSource
	q    url.Values
	size int64
	buf  []byte
	off  int64
}

const peerChunk = 16 << 20 // bytes

func (r *peerReader) ReadAt(b []byte, off int64) (int, error) {
	if off < r.off || off+int64(len(b)) > r.off+int64(len(r.buf)) {
		n := min(peerChunk, r.size-off)
		q := url.Values{"set": r.q["set"], "rank": r.q["rank"], "raw": r.q["raw"], "off": {strconv.FormatInt(off, 10)}, "len": {strconv.FormatInt(n, 10)}}
		buf, err := r.p.n.peers.get(r.ctx, r.p.node.Addr, "/v1/peer/shard", q, n)
		if err != nil {
			return 0, err
		}
		if int64(len(buf)) != n {
			return 0, fmt.Errorf("%s: %w: %d bytes of %d came", r.p.Name(), catalog.ErrUnavailable, len(buf), n)
		}
		r.buf, r.off = buf, off
	}
	return copy(b, r.buf[off-r.off:]), nil
}

// manifestSet reads which set a manifest is of, from what comes before its shards.
func manifestSet(b []byte) (id catalog.SetID, err error) {
	bad := func(err error) (catalog.SetID, error) {
		return id, fmt.Errorf("manifest: %w: %v", catalog.ErrCorrupt, err)
	}
	d := json.NewDecoder(bytes.NewReader(b[:min(len(b), 64<<10)]))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return bad(fmt.Errorf("no object: %v", err))
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return bad(err)
		}
		if key == "set" {
			if err := d.Decode(&id); err != nil {
				return bad(err)
			}
			return id, id.Check()
		}
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return bad(err)
		}
	}
	return bad(errors.New("it names no set"))
}

// peerRoutes are the handlers of the other side.
func (n *Node) peerRoutes(r routes) {
	r.put("/v1/peer/manifest", func(ctx context.Context, c *app.RequestContext) error {
		id, err := setQuery(c)
		if err != nil {
			return err
		}
		b, err := readBody(c, catalog.MaxManifestSize)
		if err != nil {
			return err
		}
		// The set is not committed before this answer, so only its head is read
		// here: a manifest of a thousand ranks takes longer to parse than to
		// sync. Who reads it checks it against the root that was committed.
		if of, err := manifestSet(b); err != nil {
			return err
		} else if of != id {
			return fmt.Errorf("manifest of %v: %w: it is of %v", id, catalog.ErrInvalid, of)
		}
		// A committed manifest is never replaced by another.
		if rec, ok := n.cat.KnownSet(id); ok && rec.State == catalog.Committed {
			if sha256.Sum256(b) != rec.Manifest {
				return fmt.Errorf("manifest of %v: %w: it was committed with another", id, catalog.ErrConflict)
			}
		}
		if err := n.local.Put(ctx, id.ManifestName(), b); err != nil {
			return err
		}
		return reply(c, struct{}{})
	})
	r.get("/v1/peer/manifest", func(ctx context.Context, c *app.RequestContext) error {
		id, err := setQuery(c)
		if err != nil {
			return err
		}
		b, err := n.local.Get(ctx, id.ManifestName())
		if err != nil {
			return err
		}
		c.Data(http.StatusOK, "application/json", b)
		return nil
	})
	r.get("/v1/peer/seal", func(_ context.Context, c *app.RequestContext) error {
		name, err := shardQuery(c)
		if err != nil {
			return err
		}
		seal, err := n.local.Seal(name)
		if err != nil {
			return err
		}
		c.Data(http.StatusOK, "application/octet-stream", seal.Marshal())
		return nil
	})
	r.get("/v1/peer/shard", func(_ context.Context, c *app.RequestContext) error {
		name, err := shardQuery(c)
		if err != nil {
			return err
		}
		off, err1 := strconv.ParseInt(c.Query("off"), 10, 64)
		size, err2 := strconv.ParseInt(c.Query("len"), 10, 64)
		b, err := n.local.Open(name)
		if err != nil {
			return err
		}
		defer b.Close()
		if err1 != nil || err2 != nil || off < 0 || size < 0 || size > peerChunk || off > b.Size()-size {
			return fmt.Errorf("%s: %w: off and len are outside the shard or len is over %d", name, catalog.ErrInvalid, peerChunk)
		}
		p := make([]byte, size)
		if k, err := b.ReadAt(p, off); k < len(p) && !errors.Is(err, io.EOF) {
			return err
		}
		c.Data(http.StatusOK, "application/octet-stream", p)
		return nil
	})
	r.post("/v1/peer/rebuild", func(ctx context.Context, c *app.RequestContext) error {
		res, err := n.rebuildLocal(ctx, func(wire.Progress) {})
		if err != nil {
			return err
		}
		return reply(c, res)
	})
}

func setQuery(c *app.RequestContext) (catalog.SetID, error) {
	ref, err := catalog.ParseRef(c.Query("set"))
	if err != nil {
		return catalog.SetID{}, err
	}
	id := catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}
	return id, id.Check()
}

func shardQuery(c *app.RequestContext) (string, error) {
	id, err := setQuery(c)
	if err != nil {
		return "", err
	}
	rank, err := strconv.Atoi(c.Query("rank"))
	if err != nil || rank < 0 || rank >= catalog.MaxWorld {
		return "", fmt.Errorf("rank %q: %w", c.Query("rank"), catalog.ErrInvalid)
	}
	return id.BlobName(rank, c.Query("raw") == "true"), nil
}
