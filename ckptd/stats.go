package ckptd

import "sync/atomic"

// Stats counts what a node has done since it started. `/metrics` shows each
// field under the name in its comment.
type Stats struct {
	Saves         atomic.Int64 // ckptd_saves_total: shards sealed
	SavedBytes    atomic.Int64 // ckptd_saved_bytes_total
	Votes         atomic.Int64 // ckptd_votes_total: shards stated durable
	Commits       atomic.Int64 // ckptd_commits_total: sets committed by this node
	DrainedBytes  atomic.Int64 // ckptd_drained_bytes_total
	StoredBytes   atomic.Int64 // ckptd_drained_stored_bytes_total: of the drained, as the remote tier keeps them, before parity
	VerifiedBytes atomic.Int64 // ckptd_verified_bytes_total
	MendedColumns atomic.Int64 // ckptd_mended_columns_total: columns of the remote tier rebuilt or moved
	MendedBytes   atomic.Int64 // ckptd_mended_bytes_total: written for them
	ScrubbedBytes atomic.Int64 // ckptd_scrubbed_bytes_total: of columns of the remote tier that were looked at
	ScrubBad      atomic.Int64 // ckptd_scrub_bad_total: columns found missing or not what they should be
	ScrubRemoved  atomic.Int64 // ckptd_scrub_removed_total: columns removed that no record named
	Evicted       atomic.Int64 // ckptd_evicted_shards_total
	Quarantined   atomic.Int64 // ckptd_quarantined_shards_total
	Pruned        atomic.Int64 // ckptd_pruned_sets_total
	DraftsDropped atomic.Int64 // ckptd_drafts_dropped_total: files of drafts written beyond the quota
	DraftsExpired atomic.Int64 // ckptd_drafts_expired_total: drafts removed that nobody touched for long
	Loads         atomic.Int64 // ckptd_loads_total: shards handed out
	LoadedBytes   atomic.Int64 // ckptd_loaded_bytes_total
	RemoteBytes   atomic.Int64 // ckptd_remote_read_bytes_total
	DutyErrors    atomic.Int64 // ckptd_duty_errors_total
	Sessions      atomic.Int64 // ckptd_sessions: open now
}
