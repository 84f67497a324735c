package main

import "github.com/spf13/cobra"

func newDatasetCmd(a *app) *cobra.Command {
	return group("dataset", "Training data: immutable versions, kept in packs, read in a shuffled order",
		newDatasetImportCmd(a), newDatasetShuffleCmd(a),
		newDatasetLsCmd(a), newDatasetShowCmd(a), newDatasetVerifyCmd(a),
		newDatasetRmCmd(a), newDatasetPinCmd(a, true), newDatasetPinCmd(a, false), newDatasetTagCmd(a),
		newDatasetWarmCmd(a),
		newDatasetLocateCmd(a),
		newDatasetSettingsCmd(a),
	)
}
