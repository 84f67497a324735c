package ckpt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	maxAnswer = 1 << 30 // bytes of one JSON answer
	maxLine   = 4 << 20 // bytes of one line of a streamed answer
	maxError  = 1 << 20
)

func (c *Client) newHTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialUnix(ctx) },
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}}
}

// do sends a request and gives its answer, which has a 2xx status; the caller
// closes the body.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "ckptd", Path: path, RawQuery: query.Encode()}
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, catalog.ErrInvalid, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// Every request may be sent twice, so net/http may retry one whose idle
	// connection turned out to be closed. An empty value is not sent.
	req.Header["X-Idempotency-Key"] = nil
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", path, context.Cause(ctx))
		}
		err = fmt.Errorf("daemon at %s: %w: %w", c.socket, catalog.ErrUnavailable, reason(err))
		return nil, wire.WithHint(err, "is it running? start it with `ckptd serve`")
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, answerError(path, resp)
}

// answerError is the error in an answer.
func answerError(path string, resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	var told struct{ Error *wire.Error }
	if json.Unmarshal(b, &told) == nil && told.Error != nil && told.Error.Code != "" {
		return told.Error
	}
	for _, class := range catalog.Classes { // at least the status tells the class
		if e := wire.ErrorOf(class); e.Status() == resp.StatusCode {
			return fmt.Errorf("%s: %w: %s %.200q", path, class, resp.Status, b)
		}
	}
	return fmt.Errorf("%s: %s %.200q", path, resp.Status, b)
}

// decode reads a JSON answer.
func decode[T any](path string, resp *http.Response, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	v := new(T)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, catalog.ErrUnavailable, err)
	}
	return v, nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	resp, err := c.do(ctx, http.MethodGet, path, query, nil)
	return decode[T](path, resp, err)
}

func post[T any](ctx context.Context, c *Client, path string, body any) (*T, error) {
	resp, err := c.do(ctx, http.MethodPost, path, nil, body)
	return decode[T](path, resp, err)
}

// errStop ends lines early without being an error.
var errStop = errors.New("stop")

// lines reads a streamed answer: each line's result goes to result, progress
// (which may be nil) to progress.
func (c *Client) lines(ctx context.Context, method, path string, query url.Values, body any, progress func(wire.Progress), result func([]byte) error) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	scan := bufio.NewScanner(resp.Body)
	scan.Buffer(make([]byte, 64<<10), maxLine)
	for scan.Scan() {
		raw := scan.Bytes()
		if len(bytes.TrimSpace(raw)) == 0 {
			continue // keeps the connection alive
		}
		var line wire.Line
		if err := json.Unmarshal(raw, &line); err != nil {
			return fmt.Errorf("%s: %w: %w", path, catalog.ErrUnavailable, err)
		}
		switch {
		case line.Error != nil:
			return line.Error
		case line.Progress != nil:
			if progress != nil {
				progress(*line.Progress)
			}
			continue
		case line.Result != nil:
			raw = line.Result
		}
		if err := result(raw); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", path, context.Cause(ctx))
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("%s: %w: %w", path, catalog.ErrUnavailable, err)
	}
	return nil
}

// stream makes a request whose answer is lines that end in one result.
func stream[T any](ctx context.Context, c *Client, path string, body any, progress func(wire.Progress)) (*T, error) {
	var v *T
	err := c.lines(ctx, http.MethodPost, path, nil, body, progress, func(raw []byte) error {
		v = new(T)
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("%s: %w: %w", path, catalog.ErrUnavailable, err)
		}
		return nil
	})
	if err == nil && v == nil {
		err = fmt.Errorf("%s: %w: the answer ended without a result", path, catalog.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}
