package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newDatasetLsCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls [NAME]", Short: "Datasets, or a dataset's versions: level, samples, files, size, age, tags", Args: args(0, 1),
		Long: `Lists the datasets, or the versions of one. The level is that of the least safe of a version's
index and packs. SIZE is of the files; STORED is what index and packs take before parity and
copies, and packs that several versions share count for each of them.`,
		ValidArgsFunction: a.completeDataset(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				if len(args) == 0 {
					list, err := c.Datasets(cmd.Context())
					if err != nil {
						return err
					}
					return a.print(map[string]any{"datasets": nonNil(list)}, func(w io.Writer) { a.printDatasets(w, list) })
				}
				list, err := c.DatasetVersions(cmd.Context(), args[0], all)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"versions": nonNil(list)}, func(w io.Writer) { a.printVersions(w, list) })
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also versions that are being written, aborted or pruned")
	return cmd
}

func (a *app) printDatasets(w io.Writer, list []wire.Dataset) {
	table(w, func(row func(...any)) {
		row("DATASET", "VERSIONS", "STORED", "LATEST", "LEVEL", "SAMPLES", "FILES", "SIZE", "AGE")
		for _, d := range list {
			v := d.Latest
			if v == nil {
				row(d.Name, d.Versions, size(d.Stored), "-", "-", "-", "-", "-", "-")
				continue
			}
			row(d.Name, d.Versions, size(d.Stored), v.Version, versionLevel(v), v.Samples, v.Files, size(v.Bytes), a.since(v.Committed))
		}
	})
	for _, d := range list {
		if d.Latest != nil {
			tellTrouble(w, d.Latest)
		}
	}
}

func (a *app) printVersions(w io.Writer, list []wire.DatasetVersion) {
	table(w, func(row func(...any)) {
		row("VERSION", "LEVEL", "SAMPLES", "FILES", "SIZE", "PACKS", "STORED", "AGE", "TAGS")
		for i := range list {
			v := &list[i]
			if v.State != catalog.Committed {
				row(v.Version, v.State, "-", "-", "-", "-", "-", a.since(v.Begun), versionTags(v))
				continue
			}
			row(v.Version, versionLevel(v), v.Samples, v.Files, size(v.Bytes), v.Packs, size(v.Stored), a.since(v.Committed), versionTags(v))
		}
	})
	for i := range list {
		tellTrouble(w, &list[i])
	}
}

// versionLevel is a version's level, or why it has none.
func versionLevel(v *wire.DatasetVersion) string {
	switch {
	case len(v.Missing) > 0:
		return "incomplete"
	case v.Err != "":
		return "unknown"
	}
	return v.Level.String()
}

func versionTags(v *wire.DatasetVersion) string {
	return setTags(wire.Set{Tags: v.Tags, Pinned: v.Pinned})
}

// tellTrouble says below a table what its columns have no room for.
func tellTrouble(w io.Writer, v *wire.DatasetVersion) {
	if v.Err != "" {
		fmt.Fprintf(w, "%s: %s\n", v.Ref, v.Err)
	}
	if len(v.Missing) > 0 {
		fmt.Fprintf(w, "%s: %d of %s missing: %s\n", v.Ref, len(v.Missing), plural(v.Packs, "pack is", "packs are"), some(v.Missing))
	}
}

// some names the first of many.
func some(list []string) string {
	const most = 4
	if len(list) > most {
		return fmt.Sprintf("%s, … (%d more; --json lists all)", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

// datasetHints say what to do next where a dataset is concerned and the daemon
// did not say.
var datasetHints = []struct {
	class error
	hint  string
}{
	{catalog.ErrCorrupt, "`ckpt dataset verify NAME@V` checks every copy; `ckpt catalog fsck` looks at all of them"},
	{catalog.ErrConflict, "`ckpt dataset show NAME@V` tells the state it is in and who reads it; then try again"},
	{catalog.ErrIncomplete, "`ckpt dataset ls NAME --all` shows what is on its way"},
	{fs.ErrNotExist, "`ckpt dataset ls` lists the datasets, and `ckpt dataset ls NAME` its versions"},
}

// withDatasetHint adds what to do next.
func withDatasetHint(err error) error {
	if err == nil || wire.ErrorOf(err).Hint != "" {
		return err
	}
	for _, h := range datasetHints {
		if errors.Is(err, h.class) {
			return wire.WithHint(err, "%s", h.hint)
		}
	}
	return err
}
