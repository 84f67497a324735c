"""Writes safetensors files of random bytes, always the same ones: shards.py DIR COUNT MIB."""

import json
import pathlib
import random
import struct
import sys

folder, count, mib = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for rank in range(count):
    size = mib << 20
    header = json.dumps({f"w{rank}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    data = random.Random(rank).randbytes(size)
    (folder / f"shard{rank}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
