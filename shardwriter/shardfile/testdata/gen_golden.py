"""Makes the golden files that the real safetensors and numpy packages write.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install safetensors==0.8.0 numpy==2.4.6
    /tmp/v/bin/python shardwriter/shardfile/testdata/gen_golden.py

The files are committed; make them again only to add one, and read the diff (the
package writes metadata in a random order). The
ckptd-* files and golden.seal come from the Go encoder (go test -run Golden -update).
"""

import json
import zlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

HERE = Path(__file__).parent

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def pattern(name: str, dtype: str, size: int) -> bytes:
    """The bytes every golden tensor holds; golden_test.go has the same function."""
    seed = zlib.crc32(name.encode())
    mask = 1 if dtype == "BOOL" else 0xFF
    return bytes(((seed >> (8 * (j % 4))) + j * 7) & mask for j in range(size))


# What the package calls a dtype when it writes. It has no name for the F6 types, which it reads.
NAMES = {
    "F64": "float64", "I64": "int64", "U64": "uint64", "C64": "complex64",
    "F32": "float32", "I32": "int32", "U32": "uint32", "F16": "float16", "BF16": "bfloat16", "I16": "int16",
    "U16": "uint16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip


def size_of(dtype: str, shape: list[int]) -> int:
    bits = BITS[dtype]
    for dim in shape:
        bits *= dim
    assert bits % 8 == 0, (dtype, shape)
    return bits // 8


def serialize(tensors: dict[str, tuple[str, list[int]]], meta: dict[str, str] | None) -> bytes:
    specs, buffers = {}, []
    for name, (dtype, shape) in tensors.items():
        data = np.frombuffer(pattern(name, dtype, size_of(dtype, shape)) + b"\0", np.uint8)  # never an empty buffer
        buffers.append(data)
        stored = [*shape[:-1], shape[-1] // 2] if dtype == "F4" else shape  # the package doubles it
        specs[name] = safetensors.TensorSpec(
            dtype=NAMES[dtype], shape=stored, data_ptr=data.ctypes.data, data_len=data.size - 1
        )
    return safetensors.serialize(specs, meta)


def main() -> None:
    assert safetensors.__version__ == "0.8.0", safetensors.__version__
    files = {
        # Every dtype there is, through the crate's own serializer.
        "st-dtypes": ({d.lower(): (d, [2, 4]) for d in NAMES}, None),
        # Awkward shapes and names, with metadata.
        "st-shapes": (
            {
                n: (d, s)
                for n, d, s in [
                    ("scalar", "F32", []), ("empty", "F16", [0]), ("empty.3d", "I64", [2, 0, 3]), ("bool", "BOOL", [3]),
                    ("größe/層", "BF16", [3, 1]), ('quote"back\\slash\n', "U8", [5]),
                    ("", "I8", [1]), ("😀", "U16", [2]),
                ]
            },
            {"format": "pt", "note": 'a "quoted" line\nand 層 😀', "": ""},
        ),
        "st-empty": ({}, None),
        "st-onlymeta": ({}, {"format": "np"}),
    }  # fmt: skip
    expect = {}
    for stem, (tensors, meta) in files.items():
        (HERE / f"{stem}.safetensors").write_bytes(serialize(tensors, meta))
        expect[f"{stem}.safetensors"] = {
            "tensors": {n: {"dtype": d, "shape": s} for n, (d, s) in tensors.items()},
            "meta": meta or {},
        }
    # The high-level path: numpy arrays in an odd order of names.
    kinds = {"z": ("F64", np.float64), "a": ("BOOL", np.bool_), "m": ("F32", np.float32), "c": ("C64", np.complex64)}
    arrays = {n: np.frombuffer(pattern(n, d, 6 * BITS[d] // 8), dtype=t).reshape(2, 3) for n, (d, t) in kinds.items()}
    safetensors.numpy.save_file(arrays, HERE / "st-numpy.safetensors", metadata={"k": "v"})
    shapes = {n: {"dtype": d, "shape": [2, 3]} for n, (d, _) in kinds.items()}
    expect["st-numpy.safetensors"] = {"tensors": shapes, "meta": {"k": "v"}}

    np.savez(HERE / "numpy.npz", **arrays)
    np.savez_compressed(HERE / "numpy-deflated.npz", **arrays)
    for stem in "numpy", "numpy-deflated":
        expect[f"{stem}.npz"] = {"tensors": shapes, "meta": {}}
    np.savez(HERE / "scalars.npz", s=np.frombuffer(pattern("s", "I64", 8), np.int64)[0], e=np.zeros((2, 0), np.uint16))
    scalars = {"s": {"dtype": "I64", "shape": []}, "e": {"dtype": "U16", "shape": [2, 0]}}
    expect["scalars.npz"] = {"tensors": scalars, "meta": {}}
    # Refused, each for its reason.
    np.savez(HERE / "refuse-fortran.npz", a=np.zeros((2, 3), order="F"))
    np.savez(HERE / "refuse-bigendian.npz", a=np.zeros(2, ">f4"))
    np.savez(HERE / "refuse-object.npz", a=np.array([None], dtype=object))
    np.savez(HERE / "refuse-struct.npz", a=np.zeros(2, dtype=[("x", "<f4"), ("y", "<i4", (2,))]))
    np.savez(HERE / "refuse-complex128.npz", a=np.zeros(2, np.complex128))
    (HERE / "expect.json").write_text(json.dumps(expect, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
