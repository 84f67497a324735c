package bucket

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Scheme begins a spec.
const Scheme = "s3://"

// Spec says where objects are.
type Spec struct {
	Bucket   string
	Prefix   string // of every name, without a slash at its ends; may be empty
	Endpoint string // host:port
	Plain    bool   // by HTTP, not HTTPS
	Region   string // "": asked for
	Path     bool   // the bucket's name is in the path, not in the host's name
	Insecure bool   // Plain is wanted although others could listen
	Quota    int64  // bytes that a target may take there; 0: no limit
	Part     int64  // least size of a part, in bytes; 0: MinPart
}

const maxPart = 1 << 30

const defaultEndpoint = "s3.amazonaws.com"

// Parse reads s3://BUCKET/PREFIX?endpoint=URL&region=NAME&style=path|virtual&insecure=true&quota=SIZE&part=SIZE.
func Parse(s string) (Spec, error) {
	bad := func(format string, args ...any) (Spec, error) {
		return Spec{}, fmt.Errorf("%.200q: %w: %s", s, catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return bad("want s3://BUCKET/PREFIX?endpoint=https://HOST:PORT")
	}
	if u.User != nil || u.Fragment != "" || u.Port() != "" {
		return bad("credentials and ports have no place in it; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials, and endpoint= do")
	}
	q := Spec{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Endpoint: defaultEndpoint}
	if !validBucket(q.Bucket) {
		return bad("a bucket's name has 3 to 63 lower-case letters, digits, '-' and '.'")
	}
	for part := range strings.SplitSeq(q.Prefix, "/") {
		if q.Prefix != "" && (part == "" || part == "." || part == "..") || len(q.Prefix) > 700 {
			return bad("the prefix has an empty or dotted part, or is longer than 700 bytes")
		}
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("%v", err)
	}
	for key, v := range values {
		switch {
		case len(v) != 1 || v[0] == "":
			return bad("%s= wants one value", key)
		case key == "endpoint":
			e, err := url.Parse(v[0])
			if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" || e.User != nil {
				return bad("endpoint= wants https://HOST:PORT, or http://")
			}
			q.Endpoint, q.Plain, q.Path = e.Host, e.Scheme == "http", true
		case key == "region":
			q.Region = v[0]
		case key == "style" && (v[0] == "path" || v[0] == "virtual"):
		case key == "insecure" && v[0] == "true":
			q.Insecure = true
		case key == "quota" || key == "part":
			n, err := parseSize(v[0])
			if err != nil || n <= 0 || key == "part" && (n < MinPart || n > maxPart) {
				return bad("%s=%.80s; want a size as 10TB or 64MiB, of a part 32MiB to 1GiB", key, v[0])
			}
			*map[string]*int64{"quota": &q.Quota, "part": &q.Part}[key] = n
		default:
			return bad("%s=%.80s; want endpoint=, region=, style=path|virtual, insecure=true, quota= or part=", key, v[0])
		}
	}
	if style := values.Get("style"); style != "" {
		q.Path = style == "path"
	}
	if q.Plain && !q.Insecure && !loopback(q.Endpoint) {
		return bad("by http:// everybody on the way reads the bytes; use an https:// endpoint, or say insecure=true")
	}
	return q, nil
}

func loopback(endpoint string) bool {
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// sizeUnits are the suffixes of a size.
var sizeUnits = []struct {
	suffix string
	factor int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"B", 1}}

func parseSize(s string) (int64, error) {
	factor := int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = rest, u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n > 1<<60/factor {
		err = strconv.ErrRange
	}
	return n * factor, err
}

func validBucket(s string) bool {
	if len(s) < 3 || len(s) > 63 || strings.Contains(s, "..") {
		return false
	}
	for i, c := range []byte(s) {
		inside := i > 0 && i < len(s)-1
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || inside && (c == '-' || c == '.')) {
			return false
		}
	}
	return true
}

// String gives the spec back.
func (s Spec) String() string {
	u := url.URL{Scheme: "s3", Host: s.Bucket, Path: "/" + s.Prefix}
	q := url.Values{}
	if s.Endpoint != defaultEndpoint {
		scheme := "https://"
		if s.Plain {
			scheme = "http://"
		}
		q.Set("endpoint", scheme+s.Endpoint)
		if !s.Path {
			q.Set("style", "virtual")
		}
	} else if s.Path {
		q.Set("style", "path")
	}
	if s.Region != "" {
		q.Set("region", s.Region)
	}
	if s.Insecure {
		q.Set("insecure", "true")
	}
	for key, n := range map[string]int64{"quota": s.Quota, "part": s.Part} {
		if n != 0 {
			q.Set(key, strconv.FormatInt(n, 10))
		}
	}
	if s.Prefix == "" {
		u.Path = ""
	}
	// A URL in a query reads better as it is.
	raw, err := url.QueryUnescape(q.Encode())
	if err == nil && !strings.ContainsAny(raw, "%+# ") {
		u.RawQuery = raw
	} else {
		u.RawQuery = q.Encode()
	}
	return u.String()
}

// region is the spec's, or what the environment says.
func (s Spec) region() string {
	for _, r := range []string{s.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if r != "" {
			return r
		}
	}
	if s.Endpoint != defaultEndpoint {
		return "us-east-1" // what servers that have no regions call theirs
	}
	return "" // asked of the server
}
