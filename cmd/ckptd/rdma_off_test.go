//go:build !ofi

package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestWithoutRDMA: a program that was built without RDMA says so, and what to do.
func TestWithoutRDMA(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"target", "--dir", dir, "--listen", "ofi:127.0.0.1:0"},
		{"serve", "--data", dir, "--socket", dir + "/s", "--arena", "16MiB", "--arena-dir", dir + "/arena", "--remote", "ofi:127.0.0.1:7000,name=t"},
	} {
		out, err := program(args...).CombinedOutput()
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "make build-ofi") {
			t.Errorf("%q: %v, want exit code 2 and what to do\n%s", args, err, out)
		}
	}
}
