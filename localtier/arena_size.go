package localtier

// SegmentSize is the size of every segment of the pool, in bytes.
func (a *Arena) SegmentSize() int64 { return a.opt.Segment }

// Gen tells one memory of a segment from the next: a client that has mapped
// the same ID and Gen need not map it again.
func (s *Segment) Gen() uint64 { return s.inode }
