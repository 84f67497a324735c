package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const killRun = "kill"

// killSizes are the shards of a step, by rank: a small one, one of several
// blocks, one of several slots; and now and then one larger than the arena.
func killSizes(step int64) []int {
	sizes := []int{5000 + int(step), 1<<20 + 4321, 9 << 20}
	if step%6 == 0 {
		sizes[2] = 40 << 20
	}
	return sizes
}

// train is the trainer: it saves step after step until it is killed, and says
// what it was told. Arguments: socket, launch, first step.
func train(args []string) int {
	ctx := context.Background()
	step, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return 2
	}
	var c *ckpt.Client
	attempt := 0
	for ; ; step++ {
		for ; attempt == 0; time.Sleep(10 * time.Millisecond) { // until the daemon is there
			if c, err = ckpt.Dial(ctx, args[0]); err == nil {
				attempt, _ = c.Attach(ctx, killRun, args[1], len(killSizes(0)))
			}
		}
		fmt.Printf("begin %s@%d#%d\n", killRun, step, attempt)
		var g errgroup.Group
		for rank, size := range killSizes(step) {
			g.Go(func() error {
				_, err := save(ctx, c, killRun, step, attempt, rank, len(killSizes(step)), size)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			fmt.Printf("failed %s@%d#%d %v\n", killRun, step, attempt, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Printf("sealed %s@%d#%d\n", killRun, step, attempt)
		if step%2 == 0 {
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			if _, err := c.Wait(short, fmt.Sprintf("%s@%d#%d", killRun, step, attempt), catalog.Local); err == nil {
				fmt.Printf("committed %s@%d#%d\n", killRun, step, attempt)
			}
			cancel()
		}
	}
}

// trainer is a running trainer and what it has said.
type trainer struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   struct {
		sync.Mutex
		begun, sealed, committed []string
		failed                   []string
	}
	heard chan string // the words, as long as somebody listens
}

func startTrainer(t *testing.T, d *daemon, launch string, step int64) *trainer {
	t.Helper()
	tr := &trainer{done: make(chan struct{}), heard: make(chan string, 1)}
	tr.cmd = exec.Command(os.Args[0], d.socket, launch, strconv.FormatInt(step, 10))
	tr.cmd.Env = append(os.Environ(), asTrainer+"=1")
	tr.cmd.Stderr = os.Stderr
	out, err := tr.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.kill)
	go func() {
		defer close(tr.done)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			word, rest, _ := strings.Cut(scan.Text(), " ")
			tr.mu.Lock()
			switch word {
			case "begin":
				tr.mu.begun = append(tr.mu.begun, rest)
			case "sealed":
				tr.mu.sealed = append(tr.mu.sealed, rest)
			case "committed":
				tr.mu.committed = append(tr.mu.committed, rest)
			case "failed":
				tr.mu.failed = append(tr.mu.failed, rest)
			}
			tr.mu.Unlock()
			select {
			case tr.heard <- word:
			default:
			}
		}
		_ = tr.cmd.Wait() // killed
	}()
	return tr
}

// await waits until the trainer says word.
func (tr *trainer) await(t *testing.T, word string) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case w := <-tr.heard:
			if w == word {
				return
			}
		case <-limit.C:
			t.Fatalf("the trainer did not say %q within %v", word, patience)
		}
	}
}

func (tr *trainer) kill() {
	_ = tr.cmd.Process.Kill()
	<-tr.done
}

// crashKills is how often a test kills: usual, or as `make crash` says.
func crashKills(t *testing.T, usual int) int {
	t.Helper()
	s := os.Getenv("CKPTD_CRASH_KILLS")
	if s == "" {
		if testing.Short() {
			return max(1, usual/5)
		}
		return usual
	}
	kills, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("CKPTD_CRASH_KILLS: %v", err)
	}
	return kills
}

// crashSeed is what a test's randomness comes from, and says so.
func crashSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("CKPTD_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CKPTD_CRASH_SEED: %v", err)
		}
	}
	t.Logf("seed %d (CKPTD_CRASH_SEED)", seed)
	return seed
}

// TestKill9 attacks promises 1, 2 and 4. It kills the daemon at random moments
// while ranks save in a loop, most often with the trainers, and sometimes again
// while it starts. Afterwards every set whose ranks were all told "sealed"
// commits, everything listed loads and matches, nothing else is listed, and
// what was removed stays so.
func TestKill9(t *testing.T) {
	t.Parallel()
	kills, seed := crashKills(t, 20), crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 9))
	d := newDaemon(t, "n1", "--arena", "16MiB", "--grace", "1ms").start()
	var begun, removed, must []string
	var committed, sealed, step, done int
	for round := 0; done < kills; round++ {
		tr := startTrainer(t, d, fmt.Sprintf("launch %d", round), int64(step))
		tr.await(t, "begin")
		pause := time.NewTimer(time.Duration(rng.Int64N(int64(700 * time.Millisecond)))) // the random moment
		<-pause.C
		d.kill()
		done++
		survives := round%4 == 3
		if !survives {
			tr.kill()
		}
		for again := rng.IntN(3); again == 0 && done < kills; again = rng.IntN(3) {
			d.launch()
			pause.Reset(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
			<-pause.C
			d.kill()
			done++
		}
		d.start()
		c := d.dial()
		if survives {
			tr.await(t, "sealed") // with a daemon that was born after it
			tr.kill()
		}
		tr.mu.Lock()
		begun = append(begun, tr.mu.begun...)
		must = append(must, tr.mu.sealed...)
		sealed += len(tr.mu.sealed)
		committed += len(tr.mu.committed)
		step += len(tr.mu.begun)
		tr.mu.Unlock()
		for _, id := range tr.mu.sealed {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if _, err := c.Wait(ctx, id, catalog.Local); err != nil {
				t.Fatalf("after kill %d: wait for %s: %v\n%s\n%s", done, id, err, why(t, c, id), d.grep(id, "ERROR", "WARN", "resum", "before the restart"))
			}
			cancel()
		}
		now := listed(t, c, killRun)
		for id := range now {
			if !slices.Contains(begun, id) || slices.Contains(removed, id) {
				t.Errorf("after kill %d: %s is listed", done, id)
			}
		}
		for _, id := range must {
			if _, ok := now[id]; !ok {
				t.Errorf("after kill %d: %s was reported, and is gone", done, id)
			}
		}
		for id := range now {
			if err := load(t.Context(), c, id); err != nil {
				t.Errorf("after kill %d: load %s: %v", done, id, err)
			}
		}
		if t.Failed() {
			return
		}
		for len(must) > 6 { // make room; also for the next kill to fall into a collection
			eventually(t, "remove "+must[0], func() error { // the lease of the load above ends with its connection
				_, err := c.Remove(t.Context(), must[0])
				return err
			})
			removed = append(removed, must[0])
			must = must[1:]
		}
	}
	t.Logf("%d kills; %d steps begun, %d sealed, %d of them seen committed before a kill; %d removed", done, len(begun), sealed, committed, len(removed))
}
