package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newMountCmd(a *app) *cobra.Command {
	var req wire.MountRequest
	cmd := &cobra.Command{
		Use: "mount [DIR]", Short: "Show checkpoints and datasets as files in a folder; without DIR: list the mounts", Args: args(0, 1),
		Long: `Has the daemon show what it has as files in an empty folder of this machine, and returns when
they are there:

  DIR/checkpoints/RUN/STEP/rank-00000.safetensors     DIR/checkpoints/RUN/latest
  DIR/datasets/NAME/VERSION/…                         DIR/datasets/NAME/latest
  DIR/datasets/NAME/VERSION/.shuffle/SEED/EPOCH/RANK-of-WORLD.tar
  DIR/checkpoints/RUN/.write/STEP/FILE                to write in; mv RUN/.write/STEP RUN/STEP commits

Only committed sets are shown. Files that are whole on this node are read by the kernel itself
where it can (Linux 6.9, and a daemon that runs as root), others come through the daemon, from
a peer or the remote tier. A daemon that is not root's needs fusermount3 (Debian's package fuse3). A daemon that starts again has the mounts of the last one.`,
		RunE: func(cmd *cobra.Command, dirs []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				if len(dirs) == 0 {
					all, err := c.Mounts(cmd.Context())
					if err != nil {
						return err
					}
					return a.print(wire.Mounts{Mounts: all}, func(w io.Writer) {
						for i := range all {
							printMount(w, &all[i])
						}
					})
				}
				dir, err := filepath.Abs(dirs[0])
				if err != nil {
					return err
				}
				req.Dir = dir
				m, err := c.Mount(cmd.Context(), req)
				if err != nil {
					return err
				}
				return a.print(m, func(w io.Writer) { printMount(w, m) })
			})
		},
	}
	cmd.Flags().BoolVar(&req.AllowOther, "allow-other", false, "let other users look in too")
	cmd.Flags().IntVar(&req.Ahead, "ahead", 0, "packs that are fetched before they are read by who reads in order; also of a mount that is there (default the node's, see ckpt dataset settings)")
	cmd.Flags().IntVar(&req.Retries, "retries", 0, "times that all sources of a pack are asked again; also of a mount that is there (default the node's)")
	cmd.Flags().BoolVar(&req.NoPassthrough, "no-passthrough", false, "everything goes through the daemon, as where the kernel cannot do otherwise")
	cmd.Flags().BoolVar(&req.Checked, "checked", false, "check every byte that is read, instead of having the kernel read files itself")
	return cmd
}

func printMount(w io.Writer, m *wire.Mount) { fmt.Fprintln(w, mountLine(m)) }

func mountLine(m *wire.Mount) string {
	how := "the kernel reads what is whole on this node"
	switch {
	case !m.Mounted:
		how = "not mounted yet; the trouble in `ckpt status` tells why"
	case !m.Passthrough:
		how = "everything goes through the daemon: " + m.Why
	}
	ahead := ""
	if m.Ahead > 0 {
		ahead = fmt.Sprintf("; %s ahead, %d fetched so, %s", plural(m.Ahead, "pack", "packs"), m.FetchedAhead, plural(m.Retries, "retry", "retries"))
	}
	return fmt.Sprintf("%s  %s open; %s%s", m.Dir, plural(m.Open, "file", "files"), how, ahead)
}

func newUnmountCmd(a *app) *cobra.Command {
	lazy := false
	cmd := &cobra.Command{
		Use: "unmount DIR", Short: "Take a mount away", Args: args(1, 1),
		Long: `Takes a mount away. While somebody uses it, that is an error after ten seconds, which names the
processes; with --lazy it goes from under them: files that the kernel reads by itself stay
readable, others answer an error.`,
		RunE: func(cmd *cobra.Command, dirs []string) error {
			dir, err := filepath.Abs(dirs[0])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				if lazy {
					return c.UnmountLazy(cmd.Context(), dir)
				}
				return c.Unmount(cmd.Context(), dir)
			})
		},
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "also from under those who use it")
	return cmd
}
