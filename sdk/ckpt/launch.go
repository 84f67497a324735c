package ckpt

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// launches remembers the attempts this client got, so that the saves of one
// process are one attempt.
type launches struct {
	sync.Mutex
	attempts map[launchKey]int
	own      string // the name of this process' launch, when it has one rank
}

type launchKey struct {
	run, launch string
	world       int
}

// maxAttempts bounds what a client remembers; a process saves few runs.
const maxAttempts = 1024

// attempt attaches to a run, once a launch.
func (c *Client) attempt(ctx context.Context, run, launch string, world int) (int, error) {
	c.launches.Lock()
	defer c.launches.Unlock()
	if launch == "" {
		launch = launchFromEnv()
	}
	if launch == "" && world == 1 {
		if c.launches.own == "" {
			c.launches.own = "go-" + rand.Text()
		}
		launch = c.launches.own
	}
	if launch == "" {
		err := fmt.Errorf("save %s as one of %d ranks: %w: the launch has no name", run, world, catalog.ErrInvalid)
		return 0, wire.WithHint(err, "give every rank of one job start the same new name: ckpt.Launch(name) or CKPTD_LAUNCH")
	}
	key := launchKey{run, launch, world}
	if n, ok := c.launches.attempts[key]; ok {
		return n, nil
	}
	n, err := c.Attach(ctx, run, launch, world)
	if err != nil {
		return 0, err
	}
	if c.launches.attempts == nil || len(c.launches.attempts) >= maxAttempts {
		c.launches.attempts = make(map[launchKey]int)
	}
	c.launches.attempts[key] = n
	return n, nil
}

// launchFromEnv names this start of the job by what the launcher says of it.
func launchFromEnv() string {
	if s := os.Getenv("CKPTD_LAUNCH"); s != "" {
		return s
	}
	// torchrun without --rdzv-id says "none", which many jobs share.
	if id := os.Getenv("TORCHELASTIC_RUN_ID"); id != "" && id != "none" {
		return fmt.Sprintf("torch-%s-%s", id, envOr("TORCHELASTIC_RESTART_COUNT", "0"))
	}
	if id := os.Getenv("SLURM_JOB_ID"); id != "" {
		return fmt.Sprintf("slurm-%s.%s-%s", id, envOr("SLURM_STEP_ID", "0"), envOr("SLURM_RESTART_COUNT", "0"))
	}
	return ""
}

func envOr(name, other string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return other
}
