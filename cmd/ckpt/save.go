package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const (
	savesAtOnce = 4 // files on their way
	undoTimeout = 10 * time.Second
)

func newSaveCmd(a *app) *cobra.Command {
	var level, launch string
	var metrics []string
	var raw bool
	cmd := &cobra.Command{
		Use: "save RUN@STEP FILE...", Short: "Save existing files as the shards of a set (rank = order)",
		Long: `Saves existing files as one set: the first is rank 0's shard, the second rank 1's,
and so on. The tensors of .safetensors and .npz files are kept as tensors; any other file,
and with --raw those as well, is kept as it is, byte for byte, under its own name. It begins a new attempt of the run, so a job that saves to the same run is
fenced; --launch joins its attempt instead.`,
		Args: args(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := catalog.ParseRef(args[0])
			if err != nil {
				return err
			}
			if ref.Step == catalog.Latest || ref.Attempt != 0 || ref.Level != catalog.LevelNone {
				return usage("%s; want RUN@STEP", args[0])
			}
			until, err := catalog.ParseLevel(level)
			if err != nil {
				return err
			}
			m, err := parseMetrics(metrics)
			if err != nil {
				return err
			}
			if launch == "" {
				launch = "ckpt-save-" + rand.Text()
			}
			job := saveJob{app: a, at: ckpt.At(string(ref.Run), ref.Step), launch: launch, metrics: m, until: until, raw: raw}
			return a.with(cmd.Context(), func(c *ckpt.Client) error { return job.run(cmd.Context(), c, args[1:]) })
		},
	}
	cmd.Flags().StringVar(&level, "level", "local", "return when the set is at this level")
	cmd.Flags().StringVar(&launch, "launch", "", "the name of this launch (default: a new one)")
	cmd.Flags().BoolVar(&raw, "raw", false, "keep every file as it is, also .safetensors and .npz")
	cmd.Flags().StringArrayVar(&metrics, "metric", nil, "NAME=NUMBER, kept in the set's record")
	return cmd
}

func parseMetrics(list []string) (map[string]float64, error) {
	m := make(map[string]float64)
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		n, err := strconv.ParseFloat(v, 64)
		if !ok || k == "" || err != nil {
			return nil, usage("metric %q; want NAME=NUMBER", kv)
		}
		m[k] = n
	}
	return m, nil
}

type saveJob struct {
	*app
	at      ckpt.Point
	launch  string
	metrics map[string]float64
	until   catalog.Level
	raw     bool // every file is saved as it is
}

// run saves the files, waits, and prints. Until every shard is sealed the set
// can be given up, and is when anything fails.
func (j *saveJob) run(ctx context.Context, c *ckpt.Client, paths []string) error {
	inputs := make([]*input, len(paths))
	defer func() {
		for _, in := range inputs {
			if in != nil {
				in.Close()
			}
		}
	}()
	total := int64(0)
	for i, path := range paths {
		var err error
		if inputs[i], err = openInput(path, j.raw); err != nil {
			return err
		}
		total += inputs[i].size
	}
	if err := checkNames(inputs); err != nil {
		return err
	}
	attempt, err := c.Attach(ctx, j.at.Run, j.launch, len(paths))
	if err != nil {
		return err
	}
	begin := time.Now()
	p := j.progress("save", total, "bytes")
	defer p.end()
	var sealed struct {
		sync.Mutex
		id *catalog.SetID
		n  int
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(savesAtOnce)
	for rank, in := range inputs {
		group.Go(func() error {
			set, err := j.shard(gctx, c, in, rank, len(paths), attempt, p)
			if err != nil {
				return fmt.Errorf("%s: %w", in.path, err)
			}
			sealed.Lock()
			defer sealed.Unlock()
			sealed.id = &set.ID
			sealed.n++
			return nil
		})
	}
	err = group.Wait()
	p.end()
	if err != nil {
		if sealed.id != nil && sealed.n < len(paths) {
			j.giveUp(ctx, c, *sealed.id)
		}
		return err
	}
	copied := time.Since(begin)
	set, err := c.Wait(ctx, sealed.id.String(), j.until)
	if errors.Is(err, context.Canceled) {
		j.giveUp(ctx, c, *sealed.id)
	}
	if err != nil {
		return err
	}
	return j.print(set, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s in %s, %v, %s/s\n", set.ID, size(set.Size), plural(set.World, "shard", "shards"), set.Level, size(int64(float64(total)/copied.Seconds())))
	})
}

func (j *saveJob) shard(ctx context.Context, c *ckpt.Client, in *input, rank, world, attempt int, p *progress) (*ckpt.Set, error) {
	s, err := c.Save(ctx, j.at, ckpt.Rank(rank, world), ckpt.Attempt(attempt), ckpt.Metrics(j.metrics))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := in.addTo(s, p.add); err != nil {
		return nil, err
	}
	return s.Commit(ctx)
}

// giveUp removes a set of which some shards are with the daemon already.
func (j *saveJob) giveUp(ctx context.Context, c *ckpt.Client, id catalog.SetID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if _, err := c.Remove(ctx, id.String()); err != nil {
		fmt.Fprintf(j.err, "ckpt: %v could not be removed: %v\n", id, err)
	}
}
