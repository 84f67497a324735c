"""State as a tree of JSON with its tensors taken out, and back.

The tree is kept in the header's `ckptd.state`. JSON's own values stand for
themselves (integers up to 2^53); everything else is an object with one key that
begins with "$", and a plain dict is a JSON object whose keys are strings that do
not:

    {"$tensor": NAME, "as": KIND, …}   a tensor of this file; see _leaf
    {"$tuple": […]}  {"$set": […]}  {"$frozenset": […]}  {"$dict": [[key, value], …]}
    {"$int": "0x…"}  {"$float": "nan"}  {"$complex": [re, im]}  {"$bytes": BASE64}
    {"$bytearray": BASE64}  {"$str": BASE64 of UTF-8 with lone surrogates}
    {"$range": [a, b, step]}  {"$slice": […]}
    {"$numpy.dtype": …}  {"$torch.dtype": "bfloat16"}  {"$torch.device": "cuda:0"}
"""

from __future__ import annotations

import base64
import enum
import json
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _dtensor, _dtypes
from ._errors import Invalid
from ._kinds import is_array, is_blob, is_dtype, is_list, is_mapping, is_scalar, is_span, is_tuple
from ._tensors import Source, share, source

SMALL_BYTES = 4096  # longer byte strings become tensors
STATE_IN_HEADER = 256 << 10  # bytes; a longer tree becomes a tensor of its own
STATE, PIECES, VERSION = "ckptd.state", "ckptd.pieces", "ckptd.version"
_EXACT = 1 << 53


@dataclass(frozen=True)
class Piece:
    """One rank's part of a tensor that is spread over ranks.

    `array` is what this rank holds, `global_shape` the whole tensor's shape, `start`
    where in it this part begins, one number a dimension. Loading a set without a
    rank puts the pieces together; loading one rank gives its Piece back.
    """

    array: Any
    global_shape: Sequence[int]
    start: Sequence[int]


@dataclass
class Flat:
    """A state taken apart: what the header says, and the tensors in the order of their bytes."""

    tensors: list[tuple[str, str, tuple[int, ...]]]  # name, dtype, shape
    sources: list[Source]
    meta: dict[str, str]


def flatten(state: Any, *, allow_pickle: bool = False) -> Flat:
    """Take a state apart."""
    f = _Flattener(allow_pickle)
    try:
        tree = f.encode(state, "")
    except RecursionError:
        raise Invalid("the state is nested too deeply", "flatten its dicts and lists") from None
    write, at = share([s for s, _ in f.leaves])
    # Widest elements first keeps every tensor aligned for its type; the format allows no holes.
    write.sort(key=lambda s: -_align(s))
    names: dict[int, str] = {}
    used = {"__metadata__", STATE}
    for s in write:
        names[id(s)] = _unused(s.path or "value", used)
    pieces: dict[str, Any] = {}
    for s, leaf in f.leaves:
        home = at[id(s)]
        name = names[id(home.src)]
        leaf.update(_leaf(s, name, home.offset))
        if "piece" in leaf and home.offset is None and s.shape == s.full:
            pieces[name] = leaf["piece"]
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    meta = {VERSION: "1", STATE: text}
    if pieces:
        meta[PIECES] = json.dumps(pieces, separators=(",", ":"))
    if len(text) > STATE_IN_HEADER:
        raw = np.frombuffer(text.encode(), np.uint8)
        write.append(Source(STATE, "bytes", "U8", raw.shape, raw))
        names[id(write[-1])] = STATE
        meta[STATE] = json.dumps({"$json": STATE})
    return Flat([(names[id(s)], s.dtype, s.shape) for s in write], write, meta)


def _align(s: Source) -> int:
    if s.note is not None:  # raw bytes of a wider type
        return s.data.itemsize if is_array(s.data) else s.data.element_size()
    return {"U8": 1, "I8": 1, "BOOL": 1}.get(s.dtype) or (s.data.itemsize if hasattr(s.data, "itemsize") else 1)


def _unused(name: str, used: set[str]) -> str:
    name = name.encode("utf-8", "backslashreplace").decode()
    out, n = name, 2
    while out in used:
        out, n = f"{name}~{n}", n + 1
    used.add(out)
    return out


def _leaf(s: Source, name: str, offset: int | None) -> dict[str, Any]:
    """What the tree says of a tensor:

    as: numpy when absent. dtype: the element type when the file holds it as raw U8, with shape. grad, param: of a
    torch tensor. piece: of a sharded one. view: {offset, strides (bytes), shape, dtype} when it is part of NAME.
    """
    leaf: dict[str, Any] = {"$tensor": name, **s.extra}
    if s.kind != "numpy":
        leaf["as"] = s.kind
    if s.note is not None:
        leaf["dtype"] = s.note
    if offset is not None:
        leaf["view"] = {"offset": offset, "strides": list(s.strides), "shape": list(s.full), "dtype": s.dtype}
    return leaf


class _Flattener:
    def __init__(self, allow_pickle: bool) -> None:
        self.allow_pickle = allow_pickle
        self.leaves: list[tuple[Source, dict[str, Any]]] = []
        self._inside: set[int] = set()

    def encode(self, x: Any, path: str) -> Any:
        plain = scalar(x)
        if plain is not _NOT:
            return plain
        if is_blob(x):
            return self._blob(x, path)
        if isinstance(x, Piece):
            return self._piece(x, path)
        if _dtensor.is_dtensor(x):
            try:
                return self._piece(Piece(*_dtensor.part(x)), path)
            except Invalid as e:
                raise Invalid(f"{path or 'state'}: {e.message}", e.hint) from None
        src = source(path, x)
        if src is not None:
            return self._take(src)
        here = id(x)
        if isinstance(x, (Mapping, list, tuple, set, frozenset)):
            if here in self._inside:
                raise Invalid(f"{path or 'state'}: it contains itself")
            self._inside.add(here)
            try:
                return self._container(x, path)
            finally:
                self._inside.discard(here)
        if self.allow_pickle:
            try:
                raw = pickle.dumps(x, protocol=5)
            except Exception as e:
                raise Invalid(f"{path or 'state'}: {type(x).__name__} cannot be pickled: {e}") from e
            return self._take(_blob_source(path, "pickle", raw))
        raise Invalid(
            f"{path or 'state'}: a checkpoint cannot hold a {type(x).__module__}.{type(x).__qualname__}",
            "save what it is made of (.state_dict(), vars(x), .value), or pass allow_pickle=True to save and to load",
        )

    def _container(self, x: Any, path: str) -> Any:
        if is_mapping(x):
            return self._mapping(x, path)
        items = [self.encode(v, _join(path, i)) for i, v in enumerate(x)]
        if is_list(x):
            return items
        tag = "$tuple" if isinstance(x, tuple) else "$set" if isinstance(x, set) else "$frozenset"
        return {tag: items}

    def _mapping(self, x: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(k, str) and not k.startswith("$") and scalar(k) == k for k in x):
            return {str(k): self.encode(v, _join(path, k)) for k, v in x.items()}
        pairs: list[Any] = []
        for k, v in x.items():
            pairs.append([_key(k, path), self.encode(v, _join(path, k))])
        return {"$dict": pairs}

    def _take(self, src: Source) -> dict[str, Any]:
        leaf: dict[str, Any] = {}
        self.leaves.append((src, leaf))
        return leaf

    def _blob(self, x: bytes | bytearray | memoryview, path: str) -> Any:
        tag = "bytearray" if isinstance(x, bytearray) else "bytes"
        if isinstance(x, memoryview):
            x = x.tobytes()
        if len(x) <= SMALL_BYTES:
            return {"$" + tag: base64.b64encode(x).decode()}
        return self._take(_blob_source(path, tag, x))

    def _piece(self, x: Piece, path: str) -> Any:
        src = source(path, x.array)
        if src is None:
            raise Invalid(f"{path or 'state'}: a Piece of something that is no tensor")
        whole, start = [int(n) for n in x.global_shape], [int(n) for n in x.start]
        fits = len(whole) == len(start) == len(src.full) and all(
            a >= 0 and a + n <= g for a, n, g in zip(start, src.full, whole, strict=True)
        )
        if not fits:
            raise Invalid(f"{path or 'state'}: a piece of shape {list(src.full)} at {start} does not lie in {whole}")
        if whole:  # a scalar is all of itself
            src.extra["piece"] = {"global": whole, "start": start}
        return self._take(src)


def _blob_source(path: str, kind: str, raw: bytes | bytearray) -> Source:
    data = np.frombuffer(raw, np.uint8)
    lo = int(data.__array_interface__["data"][0])
    return Source(
        path, kind, "U8", data.shape, data, lo=lo, hi=lo + data.size, strides=(1,), full=data.shape
    )  # fmt: skip


def _join(path: str, part: Any) -> str:
    return f"{path}.{part}" if path else str(part)


_NOT = object()


def scalar(x: Any) -> Any:
    """A value that is neither tensor nor container as JSON, or _NOT."""
    if x is None or x is True or x is False:
        return x
    if isinstance(x, np.generic):
        return _NOT
    if isinstance(x, enum.Enum):
        return _NOT
    if isinstance(x, int):
        return int(x) if -_EXACT <= x <= _EXACT else {"$int": hex(x)}
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else {"$float": repr(float(x))}
    if isinstance(x, complex):
        return {"$complex": [scalar(x.real), scalar(x.imag)]}
    if isinstance(x, str):
        try:
            x.encode()
            return str(x)
        except UnicodeEncodeError:
            return {"$str": base64.b64encode(x.encode("utf-8", "surrogatepass")).decode()}
    if is_span(x):
        parts = [scalar(v) for v in (x.start, x.stop, x.step)]
        return _NOT if any(v is _NOT for v in parts) else {f"${type(x).__name__}": parts}
    if is_dtype(x):
        st, note = _dtypes.of_numpy(x)
        return {"$numpy.dtype": {"raw": note} if note is not None else st}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.dtype):
        return {"$torch.dtype": str(x).removeprefix("torch.")}
    if torch is not None and isinstance(x, torch.device):
        return {"$torch.device": str(x)}
    return _NOT


def _key(k: Any, path: str) -> Any:
    if is_scalar(k):  # hashes and compares as its Python twin
        k = k.item()
    if is_tuple(k):
        return {"$tuple": [_key(v, path) for v in k]}
    if isinstance(k, bytes):
        return {"$bytes": base64.b64encode(k).decode()}
    out = scalar(k)
    if out is _NOT:
        raise Invalid(
            f"{path or 'state'}: a key of type {type(k).__name__} cannot be saved",
            "use strings, numbers, bytes or tuples of them as keys",
        )
    return out
