package ckptd

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/protocol/http1/resp"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// routes registers handlers that return errors; the one place that writes them
// is handle.
type routes struct {
	n       *Node
	h       *server.Hertz
	network bool
}

type handler func(ctx context.Context, c *app.RequestContext) error

func (r routes) get(path string, f handler)  { r.h.GET(path, r.handle(f)) }
func (r routes) put(path string, f handler)  { r.h.PUT(path, r.handle(f)) }
func (r routes) post(path string, f handler) { r.h.POST(path, r.handle(f)) }

func (r routes) handle(f handler) app.HandlerFunc {
	return func(ctx context.Context, c *app.RequestContext) {
		defer func() {
			if p := recover(); p != nil {
				r.n.log.Error("handler panicked", "path", string(c.Path()), "panic", p)
				fail(c, fmt.Errorf("internal error: %v", p))
			}
		}()
		if r.network && r.n.cfg.Token != "" {
			got := strings.TrimPrefix(string(c.GetHeader("Authorization")), "Bearer ")
			if subtle.ConstantTimeCompare([]byte(got), []byte(r.n.cfg.Token)) != 1 {
				fail(c, fmt.Errorf("%w: wrong or missing token", wire.ErrUnauthorized))
				return
			}
		}
		if err := f(ctx, c); err != nil {
			fail(c, err)
		}
	}
}

func fail(c *app.RequestContext, err error) {
	e := wire.ErrorOf(err)
	b, _ := json.Marshal(map[string]*wire.Error{"error": e}) // strings only
	c.Data(e.Status(), "application/json", b)
}

func reply(c *app.RequestContext, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.Data(http.StatusOK, "application/json", b)
	return nil
}

// body decodes a request.
func body[T any](c *app.RequestContext) (T, error) {
	var v T
	b, err := readBody(c, maxBody)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("request body: %w: %v", catalog.ErrInvalid, err)
	}
	return v, nil
}

// readBody reads a request's body, whole or streamed, up to a limit in bytes.
func readBody(c *app.RequestContext, most int64) ([]byte, error) {
	if !c.Request.IsBodyStream() {
		b, err := c.Body() // bounded by the server
		if err != nil {
			return nil, fmt.Errorf("request body: %w: %v", catalog.ErrInvalid, err)
		}
		return b, nil
	}
	b, err := io.ReadAll(io.LimitReader(c.RequestBodyStream(), most+1))
	if err != nil {
		return nil, fmt.Errorf("request body: %w: %v", catalog.ErrInvalid, err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("request body: %w: more than %d bytes", catalog.ErrInvalid, most)
	}
	return b, nil
}

// stream answers in lines of JSON as they come.
func stream(c *app.RequestContext, f func(line func(any) error) error) error {
	c.SetStatusCode(http.StatusOK)
	c.SetContentType("application/x-ndjson")
	c.Response.HijackWriter(resp.NewChunkedBodyWriter(&c.Response, c.GetWriter()))
	line := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return err
		}
		return c.Flush()
	}
	if err := f(line); err != nil {
		return line(wire.Line{Error: wire.ErrorOf(err)}) // the status has been sent already
	}
	return nil
}

// long streams progress and then a result.
func long[T any](c *app.RequestContext, f func(progress func(wire.Progress)) (T, error)) error {
	return stream(c, func(line func(any) error) error {
		var last time.Time
		res, err := f(func(p wire.Progress) {
			if time.Since(last) > 200*time.Millisecond {
				last = time.Now()
				_ = line(wire.Line{Progress: &p}) // a client that left is noticed at the result
			}
		})
		if err != nil {
			return err
		}
		return line(wire.Line{Result: resultOf(res)})
	})
}

// resultOf encodes what ends a streamed answer: a struct of this package's
// clients, which can be encoded.
func resultOf(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("ckptd: a result of type %T: %v", v, err)) // handle answers with an error
	}
	return b
}

func (n *Node) routes(h *server.Hertz, network bool) {
	r := routes{n, h, network}
	r.get("/healthz", func(_ context.Context, c *app.RequestContext) error { return reply(c, map[string]bool{"ok": true}) })
	r.get("/readyz", n.getReady)
	r.get("/metrics", n.getMetrics)
	r.get("/v1/status", n.getStatus)
	r.get("/v1/runs", n.getRuns)
	r.get("/v1/sets", n.getSets)
	r.get("/v1/set", n.getSet)
	r.get("/v1/manifest", n.getManifest)
	r.get("/v1/why", n.getWhy)
	r.get("/v1/watch", n.getWatch)
	r.get("/v1/nodes", n.getNodes)
	r.get("/v1/targets", n.getTargets)
	r.post("/v1/targets/add", n.postTargetAdd)
	r.post("/v1/targets/remove", n.postTargetRemove)
	r.get("/v1/policy", n.getPolicy)
	r.post("/v1/policy", n.postPolicy)
	r.post("/v1/attach", n.postAttach)
	r.post("/v1/wait", n.postWait)
	r.post("/v1/commit", n.postCommit)
	r.post("/v1/tag", n.postTag)
	r.post("/v1/pin", n.postPin)
	r.post("/v1/remove", n.postRemove)
	r.post("/v1/prune", n.postPrune)
	r.post("/v1/verify", n.postVerify)
	r.post("/v1/targets/drain", n.postTargetDrain)
	r.post("/v1/targets/rebalance", n.postTargetRebalance)
	r.post("/v1/repair", n.postRepair)
	r.post("/v1/scrub", n.postScrub)
	r.post("/v1/catalog/rebuild", n.postRebuild)
	r.post("/v1/catalog/fsck", n.postFsck)
	r.get("/v1/datasets", n.getDatasets)
	r.get("/v1/dataset", n.getDataset)
	r.get("/v1/dataset/versions", n.getDatasetVersions)
	r.post("/v1/dataset/warm", n.postWarm)
	r.get("/v1/dataset/locate", n.getDatasetPlaces)
	r.get("/v1/dataset/settings", n.getDatasetSettings)
	r.post("/v1/dataset/settings", n.postDatasetSettings)
	if !network { // folders of this machine are not the network's business
		r.get("/v1/mounts", n.getMounts)
		r.post("/v1/mount", n.postMount)
		r.post("/v1/unmount", n.postUnmount)
	}
	if network {
		n.packRoutes(r)
		n.peerRoutes(r)
		n.draftRoutes(r)
	}
}

func (n *Node) getReady(ctx context.Context, c *app.RequestContext) error {
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	return reply(c, map[string]bool{"ok": true})
}
