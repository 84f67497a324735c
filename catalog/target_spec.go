package catalog

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// TargetSyntax is what ParseTarget reads, for people.
const TargetSyntax = "dir:PATH, tcp:HOST:PORT[+HOST:PORT…], tls:…, ofi:…, posix:PATH[,stripe=COUNT[:SIZE]] or s3://BUCKET[/PREFIX][?endpoint=URL], then [,name=N][,domain=D][,pool=P][,weight=W]"

// StripeMark is what stands between the path of a posix target and its
// striping, in its address.
const StripeMark = "?stripe="

// ParseTarget reads a target as people write it. The name of a target over the
// network may be left out: the target knows it. A posix or s3 engine is named
// by where it is unless the spec says otherwise, and is a pool of its own.
func ParseTarget(spec string) (TargetRecord, error) {
	r := TargetRecord{}
	bad := func(format string, args ...any) (TargetRecord, error) {
		return r, fmt.Errorf("target %.200q: %w: %s", spec, ErrInvalid, fmt.Sprintf(format, args...))
	}
	scheme, rest, _ := strings.Cut(spec, ":")
	several, known := targetSchemes[scheme]
	if !known {
		return bad("want %s", TargetSyntax)
	}
	r.Scheme = scheme
	fields := strings.Split(rest, ",")
	where := fields[0]
	switch {
	case where == "":
		return bad("it does not say where")
	case several:
		if r.Addrs = strings.Split(where, "+"); len(r.Addrs) > MaxTargetAddrs {
			return bad("%d addresses; at most %d", len(r.Addrs), MaxTargetAddrs)
		}
		for _, a := range r.Addrs {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return bad("%q is no HOST:PORT", a)
			}
		}
	case scheme == "s3":
		bucket, ok := strings.CutPrefix(where, "//")
		if !ok || bucket == "" || strings.ContainsAny(bucket[:1], "/?") {
			return bad("want s3://BUCKET[/PREFIX][?endpoint=URL]")
		}
		r.Addrs = []string{"s3:" + where}
		bucket, _, _ = strings.Cut(bucket, "?")
		r.Name = "s3:" + strings.TrimRight(bucket, "/")
	default:
		if r.Addrs = []string{where}; scheme == "posix" {
			r.Name = "posix:" + where
		}
	}
	if slices.ContainsFunc(r.Addrs, func(a string) bool { return !validAddr(a) }) {
		return bad("where it is has 1 to %d bytes, printable", maxTargetAddr)
	}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "name", "domain", "pool":
			if CheckTargetName(v) != nil {
				return bad("a %s is 1 to %d letters, digits and any of -_.:@/", k, MaxTargetName)
			}
			*map[string]*string{"name": &r.Name, "domain": &r.Domain, "pool": &r.Pool}[k] = v
		case "weight":
			w, err := strconv.ParseFloat(v, 64)
			if err != nil || !(w > 0 && w <= 1e9) {
				return bad("weight is a number above 0")
			}
			r.Weight = w
		case "stripe":
			if scheme != "posix" || v == "" || len(r.Addrs[0])+len(v) > maxTargetAddr {
				return bad("stripe is COUNT or COUNT:SIZE, of a posix target")
			}
			r.Addrs[0] += StripeMark + v
		default:
			return bad("%q is not known; name, domain, pool, weight and, of posix, stripe are", k)
		}
	}
	if scheme == "posix" || scheme == "s3" {
		if CheckTargetName(r.Name) != nil {
			return bad("where it is makes no name; give name=")
		}
		if r.Pool == "" {
			r.Pool = r.Name
		}
	}
	return r, nil
}
