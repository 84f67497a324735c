"""The way back: a tree of JSON and the bytes of a shard into state.

Everything here reads bytes that may be hostile: what is not exactly as _tree
writes it is Corrupt.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import _dtypes
from ._errors import Corrupt, Error, Invalid
from ._header import Entry, Header, count
from ._kinds import is_array, is_dict, is_list
from ._tensors import Bytes
from ._tree import PIECES, STATE, Piece

Only = Callable[[str], bool]

LEFT_OUT = object()  # stands for what `only` does not want


def only_of(only: str | Iterable[str] | None) -> Only | None:
    """What the caller wants, as a predicate on dotted paths. `*` and `?` match dots too."""
    if only is None:
        return None
    globs = [only] if isinstance(only, str) else [str(g) for g in only]
    if not globs:
        raise Invalid("only= is empty", 'give names or globs such as "model.*"')
    return lambda path: any(path == g or fnmatch.fnmatchcase(path, g) for g in globs)


class Memory:
    """The bytes of one shard's tensors, handed out as arrays of the kind that was saved.

    `data` is the whole shard; only the ranges of wanted tensors need be there.
    """

    def __init__(self, data: Bytes, header: Header, *, copy: bool, device: Any, allow_pickle: bool) -> None:
        self.header = header
        self._data, self._copy, self._device, self._pickle = data, copy, device, allow_pickle
        self._bytes: dict[str, Bytes] = {}
        self._torch: dict[str, Any] = {}
        self._done: dict[str, Any] = {}  # one object for several references to the same tensor

    def entry(self, name: Any) -> Entry:
        e = self.header.entries.get(name) if isinstance(name, str) else None
        if e is None:
            raise Corrupt(f"the state names tensor {str(name)[:80]!r}, the shard has none such")
        return e

    def raw(self, e: Entry) -> Bytes:
        """A tensor's bytes; views of one tensor share them."""
        if e.name not in self._bytes:
            b = self._data[e.offset : e.offset + e.size]
            self._bytes[e.name] = b.copy() if self._copy else b
        return self._bytes[e.name]

    def tensor(self, leaf: dict[str, Any]) -> Any:
        """What a {"$tensor": …} leaf stands for."""
        key = leaf["$tensor"] if len(leaf) == 1 else json.dumps(leaf, sort_keys=True)
        if not isinstance(key, str):
            raise Corrupt(f"the state names tensor {str(key)[:80]!r}")
        if key not in self._done:
            self._done[key] = self._make(leaf)
        return self._done[key]

    def _make(self, leaf: dict[str, Any]) -> Any:
        e, kind = self.entry(leaf["$tensor"]), leaf.get("as", "numpy")
        try:
            if kind in ("bytes", "bytearray"):
                return (bytes if kind == "bytes" else bytearray)(self.raw(e))
            if kind == "pickle":
                return self._unpickle(e)
            torch = _dtypes.optional("torch") if kind == "torch" else None
            out = self._as_torch(torch, e, leaf) if torch is not None else _NONE
            if out is _NONE:
                out = self._as_numpy(e, leaf)
                if kind == "jax":
                    out = _to_jax(out, self._device)
            if "piece" in leaf:
                p = leaf["piece"]
                return Piece(out, tuple(int(n) for n in p["global"]), tuple(int(n) for n in p["start"]))
        except Error:
            raise
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError) as err:
            raise Corrupt(f"tensor {e.name!r}: {err}") from None
        if kind == "scalar" and is_array(out):
            return out[()]
        return out

    def _as_numpy(self, e: Entry, leaf: dict[str, Any]) -> Any:
        view, note = leaf.get("view"), leaf.get("dtype")
        dtype = _dtypes.to_numpy(view["dtype"] if view else e.dtype, note)
        raw = self.raw(e)
        if view:
            return np.ndarray(
                tuple(view["shape"]), dtype, buffer=raw, offset=view["offset"], strides=tuple(view["strides"])
            )
        shape = tuple(leaf["shape"]) if "shape" in leaf else e.shape
        if e.dtype in ("F4", "F6_E2M3", "F6_E3M2") and note is None:  # packed: numpy has no such type
            shape = (*shape[:-1], shape[-1] // 2) if e.dtype == "F4" and shape and shape[-1] % 2 == 0 else (e.size,)
        if count(shape) * dtype.itemsize != e.size:
            raise Corrupt(f"tensor {e.name!r}: {e.size} bytes for {dtype} {list(shape)}")
        return np.ndarray(shape, dtype, buffer=raw) if e.size else np.empty(shape, dtype)

    def _as_torch(self, torch: Any, e: Entry, leaf: dict[str, Any]) -> Any:
        view, note = leaf.get("view"), leaf.get("dtype")
        st = view["dtype"] if view else e.dtype
        dtype = _dtypes.to_torch(torch, st, note)
        if dtype is None:
            return _NONE
        base = self._base(torch, e)
        size = dtype.itemsize
        if view:
            shape, offset = tuple(view["shape"]), view["offset"]
            if offset % size or any(s % size for s in view["strides"]):
                return self._move(torch, torch.from_numpy(self._as_numpy(e, leaf).copy()))
            whole = base[: len(base) // size * size].view(dtype)
            t = torch.as_strided(whole, shape, [s // size for s in view["strides"]], offset // size)
        else:
            shape = tuple(leaf["shape"]) if "shape" in leaf else e.shape
            if st == "F4" and "shape" not in leaf:
                shape = (*shape[:-1], shape[-1] // 2)
            t = base.view(dtype).view(shape) if e.size else self._move(torch, torch.empty(shape, dtype=dtype))
        if leaf.get("param"):
            t = torch.nn.Parameter(t, requires_grad=bool(leaf.get("grad")))
        elif leaf.get("grad"):
            t = t.detach().requires_grad_(True)
        return t

    def _base(self, torch: Any, e: Entry) -> Any:
        if e.name not in self._torch:
            raw = self.raw(e)
            t = torch.from_numpy(raw) if raw.size else torch.empty(0, dtype=torch.uint8)
            self._torch[e.name] = self._move(torch, t)
        return self._torch[e.name]

    def _move(self, torch: Any, t: Any) -> Any:
        return t if self._device is None else t.to(self._device)

    def _unpickle(self, e: Entry) -> Any:
        if not self._pickle:
            raise Invalid(
                f"{e.name} holds a pickled object, and unpickling runs code of whoever saved it",
                "if you trust them: load(..., allow_pickle=True); or only= to leave it out",
            )
        return pickle.loads(self.raw(e).tobytes())


_NONE = object()


def _to_jax(a: Any, device: Any) -> Any:
    jax = _dtypes.optional("jax")
    if jax is None:
        return a
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = jax.numpy.array(a)  # a copy: jax arrays never change, the mapped bytes may
    if out.dtype != a.dtype:
        return a  # jax without x64 would drop half of the bits
    return out if device is None else jax.device_put(out, device)


def tree_of(header: Header, state: bytes | None = None) -> Any:
    """The JSON tree of a shard; None for a shard that was not saved from a state. `state`: its bytes, where they
    are a tensor of their own."""
    text: str | bytes | None = header.meta.get(STATE) if state is None else state
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{STATE}: {e}") from None


def flat_tree(header: Header) -> dict[str, Any]:
    """The tree of a plain safetensors file: a dict from names to arrays."""
    try:
        pieces = dict(json.loads(header.meta.get(PIECES, "{}")))
    except (ValueError, TypeError, RecursionError) as e:
        raise Corrupt(f"{PIECES}: {e}") from None
    return {n: {"$tensor": n, **({"piece": pieces[n]} if n in pieces else {})} for n in header.entries}


def restore(tree: Any, leaf: Callable[[dict[str, Any]], Any], only: Only | None = None) -> Any:
    """Walk a tree; `leaf` makes the tensors. Gives LEFT_OUT when `only` wants nothing of it."""
    try:
        return _Walk(leaf, only).value(tree, "", only is None)
    except Error:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, binascii.Error) as e:
        raise Corrupt(f"{STATE}: {type(e).__name__}: {e}") from None


class _Walk:
    def __init__(self, leaf: Callable[[dict[str, Any]], Any], only: Only | None) -> None:
        self.leaf, self.only = leaf, only

    def value(self, x: Any, path: str, kept: bool) -> Any:
        kept = kept or (self.only is not None and bool(path) and self.only(path))
        if is_dict(x):
            tag = str(next(iter(x), ""))
            if not tag.startswith("$"):
                return self.pairs([(k, v) for k, v in x.items()], path, kept)
            if tag == "$dict":
                return self.pairs([(self.key(k), v) for k, v in x[tag]], path, kept)
            if tag in _SEQUENCES:
                items = self.items(x[tag], path, kept)
                return items if items is LEFT_OUT else _SEQUENCES[tag](items)
            if not kept:
                return LEFT_OUT
            return self.leaf(x) if tag == "$tensor" else _special(tag, x[tag])
        if is_list(x):
            return self.items(x, path, kept)
        return x if kept else LEFT_OUT

    def pairs(self, pairs: list[tuple[Any, Any]], path: str, kept: bool) -> Any:
        out = {k: self.value(v, f"{path}.{k}" if path else str(k), kept) for k, v in pairs}
        if kept:
            return out
        out = {k: v for k, v in out.items() if v is not LEFT_OUT}
        return out or LEFT_OUT

    def items(self, x: list[Any], path: str, kept: bool) -> Any:
        """A list keeps its length: what was left out is None, so that positions keep their meaning."""
        out = [self.value(v, f"{path}.{i}" if path else str(i), kept) for i, v in enumerate(x)]
        if not kept and all(v is LEFT_OUT for v in out):
            return LEFT_OUT
        return [None if v is LEFT_OUT else v for v in out]

    def key(self, k: Any) -> Any:
        if not is_dict(k):
            return k
        tag = next(iter(k), "")
        return tuple(self.key(v) for v in k[tag]) if tag == "$tuple" else _special(tag, k[tag])


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def _special(tag: str, v: Any) -> Any:
    match tag:
        case "$int":
            return int(v, 16)
        case "$float":
            return float(v)
        case "$complex":
            return complex(*(_number(n) for n in v))
        case "$bytes":
            return base64.b64decode(v, validate=True)
        case "$bytearray":
            return bytearray(base64.b64decode(v, validate=True))
        case "$str":
            return base64.b64decode(v, validate=True).decode("utf-8", "surrogatepass")
        case "$range":
            return range(*(_number(n) for n in v))
        case "$slice":
            return slice(*(_number(n) for n in v))
        case "$numpy.dtype":
            return _dtypes.to_numpy("", v["raw"]) if isinstance(v, dict) else _dtypes.to_numpy(v)
        case "$torch.dtype" | "$torch.device":
            torch = _dtypes.optional("torch")
            if torch is None:
                return v
            return torch.device(v) if tag == "$torch.device" else getattr(torch, v)
        case _:
            raise Corrupt(f"{STATE}: {tag[:40]!r} is unknown; it was saved by a newer ckptd")


def _number(n: Any) -> Any:
    return _special(next(iter(n)), next(iter(n.values()))) if is_dict(n) else n
