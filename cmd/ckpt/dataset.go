package main

import "github.com/spf13/cobra"

func newDatasetCmd(a *app) *cobra.Command {
	return group("dataset", "Training data: immutable versions, kept in packs, read in a shuffled order",
		newDatasetImportCmd(a), newDatasetShuffleCmd(a),
		newDatasetWarmCmd(a),
		newDatasetLocateCmd(a),
		newDatasetSettingsCmd(a),
	)
}
