package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// TestStopAtEOF has a daemon stop by itself, in order, when the process that
// started it lets go of its standard input.
func TestStopAtEOF(t *testing.T) {
	d := newDaemon(t, "n1", "--stop-at-eof", "--remote", "none")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stdin = r
	d.start()
	r.Close()
	if _, err := io.WriteString(w, "what is written there is nobody's\n"); err != nil {
		t.Fatal(err)
	}
	if got, want := d.dial().Socket(), d.socket; got != want {
		t.Errorf("Socket = %q, want %q", got, want)
	}
	w.Close()
	<-d.dead
	if got, want := d.cmd.ProcessState.ExitCode(), 0; got != want {
		t.Errorf("exit code = %d, want %d:\n%s", got, want, d.tail(5))
	}
	if _, err := os.Stat(d.socket); err == nil {
		t.Errorf("%s is still there", d.socket)
	}
}

// TestStopAtEOFNeedsAPipe: a file or a terminal would end the daemon at once, or never.
func TestStopAtEOFNeedsAPipe(t *testing.T) {
	d := newDaemon(t, "n1", "--stop-at-eof")
	d.launch() // with /dev/null
	<-d.dead
	if got, want := d.cmd.ProcessState.ExitCode(), 2; got != want {
		t.Errorf("exit code = %d, want %d", got, want)
	}
	if got, want := d.tail(1), "standard input is no pipe"; !strings.Contains(got, want) {
		t.Errorf("it said %q, want %q", got, want)
	}
}
