"""Arrays of every type and layout, byte for byte, with what they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shards import decode, encode, equal, names

import ckptd

ml_dtypes = pytest.importorskip("ml_dtypes", reason="pinned in requirements-test.txt")

TYPES = [
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "complex64", "complex128", "longdouble", "datetime64[ns]", "timedelta64[D]", "S5", "U3", "V7",
    [("a", "<f8"), ("b", "<i4", (2, 2)), ("c", [("d", "<u2")])],
    "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4",
    "float4_e2m1fn",
]  # fmt: skip


def dtype_of(t: Any) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, t)) if isinstance(t, str) and hasattr(ml_dtypes, t) else np.dtype(t)


def noise(dtype: np.dtype[Any], n: int) -> np.ndarray:
    """Every bit pattern that the type allows, NaNs with payloads included."""
    raw = np.random.default_rng(1).integers(0, 256, n * dtype.itemsize, dtype=np.uint8)
    if dtype.kind == "b":
        raw &= 1
    if dtype.kind == "U":
        raw = np.array(["añb", "", "漢"] * n, dtype)[:n].view(np.uint8)
    if dtype.name in ("int4", "float4_e2m1fn"):
        raw &= 7
    if dtype == np.longdouble:  # its padding has no value of its own
        return np.random.default_rng(1).random(n).astype(dtype)
    return raw.view(dtype)


@pytest.mark.parametrize("t", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (2, 3, 4)], ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(t: Any, shape: tuple[int, ...]) -> None:
    dtype = dtype_of(t)
    a = noise(dtype, int(np.prod(shape))).reshape(shape)
    assert equal(decode(encode({"a": a}))["a"], a)
    if shape == ():
        got = decode(encode({"a": a[()]}))["a"]
        assert got == a[()] or got.tobytes() == a.tobytes()
        assert type(got) is type(a[()])


def test_arrays_need_not_be_contiguous() -> None:
    a = np.arange(120, dtype=np.int32).reshape(4, 5, 6)
    for v in (a.T, a[:, ::2], a[::-1], a[1:3, :, 2], np.broadcast_to(a[0], (3, 5, 6)), np.asfortranarray(a)):
        assert equal(decode(encode({"v": v}))["v"], np.ascontiguousarray(v))


def test_big_endian_keeps_its_values() -> None:
    a = np.arange(5, dtype=">i4")
    got = decode(encode({"a": a, "s": a[3]}))
    assert got["a"].tolist() == a.tolist()
    assert got["s"] == 3


def test_python_objects_and_masks_are_refused() -> None:
    with pytest.raises(ckptd.Invalid, match=r"a\.0: numpy arrays of Python objects"):
        encode({"a": [np.array([None])]})
    with pytest.raises(ckptd.Invalid, match="masked"):
        encode({"a": np.ma.masked_array([1, 2], [0, 1])})


def test_an_array_with_two_names_is_written_once_and_stays_one() -> None:
    w = np.arange(1000.0)
    state = {"embed": w, "head": w, "again": w[:]}
    assert names(state) == ["embed"]
    got = decode(encode(state))
    got["head"][0] = 99
    assert got["embed"][0] == got["again"][0] == 99


def test_views_share_their_memory_again() -> None:
    w = np.arange(1000.0).reshape(10, 100)
    state = {"row": w[3], "t": w.T, "all": w, "back": w[::-1], "bytes": w.view(np.uint8)}
    assert names(state) == ["all"]
    data = encode(state)
    got = decode(data)
    assert all(equal(np.ascontiguousarray(got[k]), np.ascontiguousarray(v)) for k, v in state.items())
    got["all"][3, 5] = -1
    assert got["row"][5] == got["t"][5, 3] == got["back"][6, 5] == -1
    assert got["bytes"].reshape(-1)[(300 + 5) * 8 :][:8].view(np.float64)[0] == -1
    only = decode(encode(state), only="row")
    assert equal(only["row"], w[3]), "a view alone brings the bytes it lies in"


def test_overlap_without_an_owner_is_kept_too() -> None:
    w = np.arange(100.0)
    state = {"a": w[:60], "b": w[40:]}
    assert names(state) == ["a~storage"]
    got = decode(encode(state))
    assert equal(got["a"], w[:60])
    assert equal(got["b"], w[40:])
    got["a"][50] = -1
    assert got["b"][10] == -1


def test_neighbours_and_far_columns_are_written_apart() -> None:
    w = np.arange(1000.0).reshape(100, 10)
    assert names({"x": w[:50], "y": w[50:]}) == ["x", "y"]
    state = {"x": w[:, 0], "y": w[:, 1]}
    assert names(state) == ["x", "y"]
    assert encode(state).size < 4096 + 2000, "two columns, not the matrix"
    assert equal(decode(encode(state)), {k: np.ascontiguousarray(v) for k, v in state.items()})


def test_wide_elements_come_first_so_that_all_are_aligned() -> None:
    state = {f"t{i}": np.ones(3, dtype) for i, dtype in enumerate(["i1", "f8", "f2", "c16", "bool", "f4", "i8"])}
    for a in decode(encode(state)).values():
        assert a.flags.aligned
        assert a.flags.writeable


def test_a_copy_has_memory_of_its_own() -> None:
    data = encode({"a": np.ones(5), "b": np.ones(3)})
    got = decode(data, copy=True)
    data[4096:] = 0
    assert equal(got, {"a": np.ones(5), "b": np.ones(3)})


def test_bfloat16_without_ml_dtypes_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptd import _dtypes

    a = noise(dtype_of("bfloat16"), 10)
    data = encode({"a": a})
    monkeypatch.setattr(_dtypes, "optional", lambda module: None)
    monkeypatch.setattr(_dtypes, "_cache", {})
    got = decode(data)["a"]
    assert got.dtype == np.uint16
    assert got.dtype.metadata["ckptd.dtype"] == "BF16"
    assert got.tobytes() == a.tobytes()
    assert bytes(encode({"a": got})) == bytes(data), "and saved as what it is"


def test_jax_arrays_come_back_as_such() -> None:
    jax = pytest.importorskip("jax")
    a = jax.numpy.arange(6, dtype=jax.numpy.bfloat16).reshape(2, 3)
    data = encode({"a": a, "n": np.asarray(a)})
    got = decode(data)
    assert isinstance(got["a"], jax.Array)
    assert got["a"].dtype == a.dtype
    assert (got["a"] == a).all()
    data[4096:] = 0
    assert (got["a"] == a).all(), "it must not see later changes of the mapped bytes"
    with pytest.raises(ckptd.Invalid, match="key_data"):
        encode({"k": jax.random.key(0)})
