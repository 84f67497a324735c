package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
)

// program is ckptd with args, as a process of its own: see TestMain.
func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	return cmd
}

// targetProcess is a running target.
type targetProcess struct {
	t    *testing.T
	host *netHost // nil: this one
	cmd  *exec.Cmd
	dir  string
	name string
	addr string   // the first it listens on
	all  []string // of addresses
	more []string
	bin  string // the program, as make builds it; "": this test's own
	log  sync.WaitGroup
}

func startTarget(t *testing.T, name string, more ...string) *targetProcess {
	t.Helper()
	return startTargetOn(t, nil, name, more...)
}

// startTargetOn starts a target on a host of a network; nil: on this one.
func startTargetOn(t *testing.T, host *netHost, name string, more ...string) *targetProcess {
	t.Helper()
	p := &targetProcess{t: t, host: host, dir: filepath.Join(t.TempDir(), name), name: name, addr: "127.0.0.1:0", more: more}
	if host != nil {
		p.addr, p.more = host.addr+":0", append([]string{"--insecure"}, more...)
	}
	p.start()
	t.Cleanup(func() { p.kill() })
	return p
}

// startBuiltTarget starts the program that make builds, whose memory is not
// this test's own code and all that it links.
func startBuiltTarget(t *testing.T, tags, name string, more ...string) *targetProcess {
	t.Helper()
	p := &targetProcess{t: t, dir: filepath.Join(t.TempDir(), name), name: name, addr: "127.0.0.1:0", more: more, bin: filepath.Join(t.TempDir(), "ckptd")}
	if out, err := exec.Command("go", "build", "-tags", tags, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", p.bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	p.start()
	t.Cleanup(func() { p.kill() })
	return p
}

var listens = regexp.MustCompile(`msg="target listens" addr=(\S+)`)

// start runs the target, at the address it had before.
func (p *targetProcess) start() {
	p.t.Helper()
	args := append([]string{"target", "--dir", p.dir, "--name", p.name, "--listen", p.addr}, p.more...)
	p.cmd = p.host.program(args...)
	if p.bin != "" {
		p.cmd = exec.Command(p.bin, args...)
	}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	want := 1
	for _, flag := range p.more {
		if flag == "--listen" {
			want++
		}
	}
	addrs := make(chan []string, 1)
	p.log.Go(func() {
		var said, all []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := listens.FindStringSubmatch(lines.Text()); m != nil && len(all) < want {
				if all = append(all, m[1]); len(all) == want {
					addrs <- all
				}
			}
			said = append(said, lines.Text())
		}
		if len(all) < want {
			addrs <- nil // it ended before
			p.t.Errorf("target %s: %s", p.name, strings.Join(said, "\n"))
		}
	})
	if p.all = <-addrs; p.all == nil {
		p.t.FailNow()
	}
	p.addr = p.all[0]
}

// kill ends the target as a power failure would, for the program.
func (p *targetProcess) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	p.log.Wait()
	_ = p.cmd.Wait() // "signal: killed"
	p.cmd = nil
}

// term asks the target to stop and waits until it has.
func (p *targetProcess) term() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	p.log.Wait()
	err := p.cmd.Wait()
	p.cmd = nil
	return err
}

func (p *targetProcess) dial() *target.Remote {
	p.t.Helper()
	return p.dialWith(tcp.Options{})
}

func (p *targetProcess) dialWith(opt tcp.Options) *target.Remote {
	p.t.Helper()
	r, err := target.Dial(p.t.Context(), tcp.New(opt), []string{p.addr}, target.RemoteOptions{Name: p.name})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = r.Close() })
	return r
}

// targetCluster is a tier over n target processes.
func targetCluster(t *testing.T, n int) ([]*targetProcess, *remotetier.Tier) {
	t.Helper()
	var all []*targetProcess
	var infos []remotetier.TargetInfo
	for i := range n {
		p := startTarget(t, fmt.Sprintf("t%d", i))
		all = append(all, p)
		infos = append(infos, remotetier.TargetInfo{Target: p.dial()})
	}
	return all, remotetier.New(infos, remotetier.Options{})
}

func targetBytes(n int, seed byte) []byte {
	b := vfs.AlignedBuffer((n + 4095) &^ 4095)[:n]
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

var layout42 = stripe.Layout{K: 4, M: 2, Unit: 256 << 10}

// tellingSource tells when a part of it was read.
type tellingSource struct {
	*bytes.Reader
	at   int64
	tell func()
	once sync.Once
}

func (s *tellingSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.at {
		s.once.Do(s.tell)
	}
	return s.Reader.ReadAt(p, off)
}

// TestKillTwoOfEightDuringPut: the blob is written, to the six that are left,
// every byte of it; what the dead ones had begun is gone when they are back.
func TestKillTwoOfEightDuringPut(t *testing.T) {
	targets, tier := targetCluster(t, 8)
	rnd := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	b := targetBytes(24<<20+777, 1)
	var places []catalog.Place
	for round := range 4 {
		at := rnd.Int64N(int64(len(b)))
		dead := rnd.Perm(8)[:2]
		src := &tellingSource{Reader: bytes.NewReader(b), at: at, tell: func() {
			for _, i := range dead {
				targets[i].kill()
			}
		}}
		place, err := tier.Put(t.Context(), fmt.Sprintf("run/%d", round), src, layout42)
		if err != nil {
			t.Fatalf("round %d: targets %v killed at byte %d: %v", round, dead, at, err)
		}
		places = append(places, place)
		for _, p := range places { // with the two still dead
			checkBlob(t, tier, p, b)
		}
		for _, i := range dead {
			targets[i].start()
			if left, err := os.ReadDir(filepath.Join(targets[i].dir, "staging")); err != nil || len(left) > 0 {
				t.Errorf("round %d: staging of a target that is back holds %v, %v", round, left, err)
			}
		}
		eventually(t, "all targets are back", func() error { return tier.Verify(t.Context(), place) })
	}
}

// TestKillAnyTwoOfSixDuringRead: all pairs, killed while a reader is in the
// middle; every byte is right.
func TestKillAnyTwoOfSixDuringRead(t *testing.T) {
	targets, tier := targetCluster(t, 6)
	b := targetBytes(12<<20+333, 2)
	place, err := tier.Put(t.Context(), "run/a", bytes.NewReader(b), layout42)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		for j := range i {
			eventually(t, "all targets are back", func() error { return tier.Verify(t.Context(), place) })
			r, err := tier.Open(t.Context(), place)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(b))
			const step = 1 << 20
			for off := 0; off < len(b); off += step {
				if off == 3*step {
					targets[i].kill()
					targets[j].kill()
				}
				if _, err := r.ReadAtContext(t.Context(), got[off:min(off+step, len(b))], int64(off)); err != nil {
					t.Fatalf("targets %d and %d killed: %v", i, j, err)
				}
			}
			if !bytes.Equal(got, b) {
				t.Errorf("targets %d and %d killed: the bytes differ", i, j)
			}
			if rep := r.Report(); len(rep.Missing) > 2 || len(rep.Corrupt) > 0 {
				t.Errorf("targets %d and %d killed: %+v", i, j, rep)
			}
			_ = r.Close()
			checkBlob(t, tier, place, b) // a new reader, with both dead
			targets[i].start()
			targets[j].start()
		}
	}
}

func checkBlob(t *testing.T, tier *remotetier.Tier, p catalog.Place, want []byte) {
	t.Helper()
	r, err := tier.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(want))
	if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: equal = %v, %v", p.Blob, bytes.Equal(got, want), err)
	}
}

// TestMemoryOfATargetWith64Clients: at most 64 MiB and the buffers.
func TestMemoryOfATargetWith64Clients(t *testing.T) {
	p := startBuiltTarget(t, "", "t0", "--buffers", "32MiB")
	// Hundreds of connections at once on a busy machine: no limit of time is what is tested.
	memoryWith64Clients(t, p, func() *target.Remote { return p.dialWith(tcp.Options{Dial: time.Minute, Stall: time.Minute}) })
}

// memoryWith64Clients has a target with 32 MiB of buffers serve them.
func memoryWith64Clients(t *testing.T, p *targetProcess, dial func() *target.Remote) {
	t.Helper()
	const clients, buffers = 64, 32 << 20
	b := targetBytes(4<<20, 3)
	var wg sync.WaitGroup
	for i := range clients {
		r := dial()
		wg.Go(func() {
			k := remotetier.Key{Blob: fmt.Sprintf("run/%d", i)}
			w, err := r.Create(t.Context(), k, int64(len(b)), remotetier.CreateNew)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			if err := errors.Join(w.Write(t.Context(), b), w.Commit(t.Context())); err != nil {
				t.Error(err)
				return
			}
			rd, err := r.Open(t.Context(), k)
			if err != nil {
				t.Error(err)
				return
			}
			var readers sync.WaitGroup
			for range 12 {
				readers.Go(func() {
					got := make([]byte, len(b))
					if _, err := rd.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			readers.Wait()
		})
	}
	wg.Wait()
	peak := peakMemory(t, p.cmd.Process.Pid)
	t.Logf("%d clients: the target's memory was at most %.1f MiB, %d MiB of it buffers", clients, float64(peak)/(1<<20), buffers>>20)
	if peak > 64<<20+buffers {
		t.Errorf("the target took %d bytes, want at most 64 MiB and %d of buffers", peak, buffers)
	}
}

// peakMemory is the most a process had resident, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

func TestTargetStopsCleanly(t *testing.T) {
	p := startTarget(t, "t0")
	r := p.dial()
	w, err := r.Create(t.Context(), remotetier.Key{Blob: "a"}, 1<<20, remotetier.CreateNew)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(t.Context(), targetBytes(1<<19, 4)); err != nil {
		t.Fatal(err)
	}
	if err := p.term(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, "staging")); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v, %v", left, err)
	}
	if err := w.Commit(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Commit = %v, want ErrUnavailable", err)
	}
	if name, err := targetName("", p.dir); err != nil || name != "t0" {
		t.Errorf("the directory's name is %q, %v", name, err)
	}
	if _, err := targetName("", filepath.Join(t.TempDir(), "new dir")); err != nil {
		t.Error(err)
	}
}

func TestTargetRefusesBadFlags(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"target"},
		{"target", "--dir", dir},
		{"target", "--dir", dir, "--listen", "0.0.0.0:0"},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0,10.0.0.1:0"},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0", "--token-file", empty},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0", "--buffers", "1KiB"},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0", "--name", "not a name"},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0", "--domain", "not a domain"},
		{"target", "--dir", dir, "--listen", "127.0.0.1:0", "--tls-ca", empty},
	} {
		out, err := program(args...).CombinedOutput()
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%q: %v, want exit code 2\n%s", args, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "target.id")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused target left its directory: %v", err)
	}
}

func TestParseRemote(t *testing.T) {
	got, follow, err := parseRemote([]string{"dir:/a", "tcp:h1:7000,name=x,domain=rack1,weight=2", "tls:h2:7000+10.0.0.2:7000", "dir:/b,name=y"}, "/data", "n1")
	want := fmt.Sprint([]catalog.TargetRecord{
		{Scheme: "dir", Addrs: []string{"/a"}, Name: "t0", Node: "n1", By: "n1"},
		{Scheme: "tcp", Addrs: []string{"h1:7000"}, Name: "x", Domain: "rack1", Weight: 2, By: "n1"},
		{Scheme: "tls", Addrs: []string{"h2:7000", "10.0.0.2:7000"}, By: "n1"},
		{Scheme: "dir", Addrs: []string{"/b"}, Name: "y", Node: "n1", By: "n1"},
	})
	if err != nil || follow || fmt.Sprint(got) != want {
		t.Errorf("parseRemote = %v, %v, %v, want %v", got, follow, err, want)
	}
	if got, follow, err := parseRemote(nil, "/data", "n1"); err != nil || follow || len(got) != 3 || got[2].Addrs[0] != "/data/targets/t2" {
		t.Errorf("the default is %v, %v", got, err)
	}
	if got, follow, err := parseRemote([]string{"none"}, "/data", "n1"); err != nil || follow || len(got) != 0 {
		t.Errorf("none is %v, %v, %v", got, follow, err)
	}
	if got, follow, err := parseRemote([]string{"catalog", "dir:/a"}, "/data", "n1"); err != nil || !follow || len(got) != 1 {
		t.Errorf("catalog and one more is %v, %v, %v", got, follow, err)
	}
	for _, bad := range []string{"", "dir:", "/a", "tcp:h1", "udp:h:1", "dir:/a,weight=0", "tcp:h:1,name=a b", "none,name=x", "catalog,name=x"} {
		if _, _, err := parseRemote([]string{bad}, "", "n1"); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("--remote %q: %v, want ErrInvalid", bad, err)
		}
	}
	if _, _, err := parseRemote([]string{"dir:/a,name=x", "tcp:h:1,name=x"}, "", "n1"); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("one name twice: %v", err)
	}
}

// TestDaemonWithTargetsOverTCP: one target is away when the daemon starts, two
// are killed during the drain and two others during a restore from the remote
// tier; every byte is right, and the one that comes late is used.
func TestDaemonWithTargetsOverTCP(t *testing.T) {
	var targets []*targetProcess
	flags := []string{"--layout", "4+2", "--unit", "64KiB"}
	for i := range 9 {
		p := startTarget(t, fmt.Sprintf("t%d", i), "--domain", fmt.Sprintf("rack%d", i))
		targets = append(targets, p)
		flags = append(flags, "--remote", fmt.Sprintf("tcp:%s,name=%s", p.addr, p.name))
	}
	targets[8].kill()
	d := newDaemon(t, "n1", flags...).start()
	c := d.dial()
	trouble := func() string {
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Trouble, "; ")
	}
	if got := trouble(); !strings.Contains(got, "target t8") {
		t.Errorf("a target is away, and the trouble is %q", got)
	}
	if n, err := c.Attach(t.Context(), "run", "launch", 1); err != nil || n != 1 {
		t.Fatalf("Attach = %d, %v", n, err)
	}
	for step := int64(1); step <= 3; step++ {
		if _, err := save(t.Context(), c, "run", step, 1, 0, 1, 6<<20); err != nil {
			t.Fatal(err)
		}
		if step == 2 { // during the drain
			targets[0].kill()
			targets[1].kill()
		}
	}
	mustWait(t, c, "run@3", catalog.Remote)
	mustWait(t, c, "run@2", catalog.Remote)
	for step := range 3 {
		mustLoad(t, c, fmt.Sprintf("run@%d", step+1), "remote")
	}
	targets[0].start()
	targets[1].start()
	targets[8].start()
	eventually(t, "the targets are used again", func() error {
		if got := trouble(); strings.Contains(got, "target t") {
			return errors.New(got)
		}
		return nil
	})
	var wg sync.WaitGroup // a restore, in the middle of which two are killed
	started := make(chan struct{})
	wg.Go(func() {
		for i := range 6 {
			if i == 1 {
				close(started)
			}
			mustLoad(t, c, "run@1", "remote")
			mustLoad(t, c, "run@3", "remote")
		}
	})
	<-started
	targets[2].kill()
	targets[3].kill()
	wg.Wait()
}

// certificate writes a certificate for 127.0.0.1 that is its own authority.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ckptd test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// TestDaemonWithTargetsOverTLS: mutual TLS and a token, all by flags; a target
// that wants them is away for a daemon that has not got them.
func TestDaemonWithTargetsOverTLS(t *testing.T) {
	cert, key := certificate(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var remotes []string
	for i := range 3 {
		p := startTarget(t, fmt.Sprintf("t%d", i), "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-ca", cert, "--token-file", token)
		remotes = append(remotes, "--remote", fmt.Sprintf("tls:%s,name=%s", p.addr, p.name))
	}
	d := newDaemon(t, "n1", append(remotes, "--tls-cert", cert, "--tls-key", key, "--tls-ca", cert, "--token-file", token)...).start()
	c := d.dial()
	if _, err := c.Attach(t.Context(), "run", "launch", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := save(t.Context(), c, "run", 1, 1, 0, 1, 1<<20); err != nil {
		t.Fatal(err)
	}
	mustWait(t, c, "run@1", catalog.Verified)
	mustLoad(t, c, "run@1", "remote")

	stranger := newDaemon(t, "n2", append(remotes, "--tls-ca", cert)...).start()
	s, err := stranger.dial().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Remote.Targets) != 3 {
		t.Errorf("%d targets", len(s.Remote.Targets))
	}
	for _, row := range s.Remote.Targets {
		if row.Err == "" {
			t.Errorf("%s is open to a daemon without certificate and token", row.Name)
		}
	}
}
