package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// network is hosts with addresses of their own behind one switch: network
// namespaces without names. Each lives as long as a process that reads a pipe of
// this one, so that nothing is left behind, however the test ends.
type network struct {
	t      *testing.T
	id     int
	subnet string // its first three numbers
	sw     *netHost
	hosts  int
}

// netHost is one of them.
type netHost struct {
	net  *network
	n    int // its address's last number
	addr string
	dev  string // its card
	pid  int    // of the process that holds its namespace; 0: the test's own
}

// newNetwork makes a network that the test itself is a host of. It needs root,
// ip and nsenter.
func newNetwork(t *testing.T) *network {
	t.Helper()
	if err := netnsMissing(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("SKIPPED, AND NOTHING ELSE TESTS PARTITIONS OF REAL HOSTS: %v. Run the test as root.", err)
		}
		t.Fatalf("partitions cannot be tested: %v; run the tests as root", err)
	}
	// 198.18.0.0/15 is for tests of networkIDs; the process's number makes it ours.
	n := &network{t: t, id: os.Getpid()*8 + int(networkIDs.Add(1))}
	n.subnet = fmt.Sprintf("198.%d.%d", 18+n.id%2, n.id/2%256)
	n.sw = n.hold()
	n.sw.ip("link add br0 type bridge")
	n.sw.ip("link set br0 up")
	return n
}

var networkIDs atomic.Int32 // made by this process

func netnsMissing() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("this is not root"))
	}
	for _, tool := range []string{"ip", "tc", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// hold makes a namespace.
func (n *network) hold() *netHost {
	n.t.Helper()
	holder := exec.Command("cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := holder.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		n.t.Fatalf("make a network namespace: %v", err)
	}
	n.t.Cleanup(func() {
		_ = in.Close() // cat ends, and the namespace with it
		if err := holder.Wait(); err != nil {
			n.t.Error(err)
		}
	})
	h := &netHost{net: n, pid: holder.Process.Pid}
	h.ip("link set lo up")
	return h
}

// host adds a host.
func (n *network) host() *netHost { return n.plug(n.hold(), "eth0") }

// self makes the test a host.
func (n *network) self() *netHost {
	return n.plug(&netHost{net: n}, fmt.Sprintf("ckptd%d", n.id))
}

// plug connects h to the switch.
func (n *network) plug(h *netHost, dev string) *netHost {
	n.hosts++
	h.n, h.dev, h.addr = n.hosts, dev, fmt.Sprintf("%s.%d", n.subnet, n.hosts)
	pid := h.pid
	if pid == 0 {
		pid = os.Getpid()
	}
	n.sw.ip("link add %s type veth peer name %s netns %d", h.port(), dev, pid)
	n.sw.ip("link set %s master br0 up", h.port())
	h.ip("addr add %s/24 dev %s", h.addr, dev)
	h.ip("link set %s up", dev)
	return h
}

// port is the host's, at the switch.
func (h *netHost) port() string { return fmt.Sprintf("p%d", h.n) }

// command is a program on the host.
func (h *netHost) command(args ...string) *exec.Cmd {
	if h.pid == 0 {
		return exec.Command(args[0], args[1:]...)
	}
	cmd := exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", h.pid), "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// program is ckptd on the host, or, for nil, where the test is.
func (h *netHost) program(args ...string) *exec.Cmd {
	if h == nil {
		return program(args...)
	}
	cmd := h.command(append([]string{os.Args[0]}, args...)...)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	return cmd
}

func (h *netHost) run(args string) {
	h.net.t.Helper()
	if out, err := h.command(strings.Fields(args)...).CombinedOutput(); err != nil {
		h.net.t.Fatalf("%s: %v: %s", args, err, out)
	}
}

func (h *netHost) ip(format string, args ...any) {
	h.net.t.Helper()
	h.run("ip " + fmt.Sprintf(format, args...))
}

// unplug takes the host's cable out.
func (h *netHost) unplug() (heal func()) {
	h.net.t.Helper()
	h.net.sw.ip("link set %s down", h.port())
	return sync.OnceFunc(func() { h.net.sw.ip("link set %s up", h.port()) })
}

// deafTo makes what others send to the host get lost: they send it to a card
// that nobody has. What the host sends arrives.
func (h *netHost) deafTo(others ...*netHost) (heal func()) {
	h.net.t.Helper()
	for _, o := range others {
		o.ip("neigh replace %s lladdr 02:00:00:00:00:01 nud permanent dev %s", h.addr, o.dev)
	}
	return sync.OnceFunc(func() {
		for _, o := range others {
			o.ip("neigh del %s dev %s", h.addr, o.dev)
		}
	})
}

// slow gives the host's cable a rate, both ways.
func (h *netHost) slow(rate string) (heal func()) {
	h.net.t.Helper()
	ends := map[*netHost]string{h.net.sw: h.port(), h: h.dev}
	for end, dev := range ends {
		end.run(fmt.Sprintf("tc qdisc add dev %s root tbf rate %s burst 64kb latency 300ms", dev, rate))
	}
	return sync.OnceFunc(func() {
		for end, dev := range ends {
			end.run(fmt.Sprintf("tc qdisc del dev %s root", dev))
		}
	})
}
