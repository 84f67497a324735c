package target_test

import (
	"hash/crc32"

	"github.com/ckptd/ckptd/catalog"
)

func crcOf(p []byte) uint32 { return crc32.Checksum(p, catalog.Castagnoli) }
