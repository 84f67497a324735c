"""Tensors of any framework as bytes to be copied.

A Source is one tensor of the caller's state: what it is called in the file, and
its bytes, without a copy where the memory is plain and contiguous. Tensors that
share memory are found by their addresses and written once (see share).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _dtypes
from ._errors import Invalid
from ._header import nbytes
from ._kinds import is_array, is_scalar

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class Source:
    """A tensor on its way into a shard."""

    path: str  # dotted, for names and messages
    kind: str  # "numpy", "scalar", "torch", "jax", "bytes", "bytearray", "pickle"
    dtype: str  # by its safetensors name
    shape: tuple[int, ...]  # as the file says it
    data: Any  # an ndarray, or a detached torch tensor
    note: Any = None  # the element type where the file can only say U8
    device: str = "cpu"
    lo: int = 0  # address of the first byte
    hi: int = 0  # address behind the last; lo when empty or unknown
    first: int = 0  # address of the element with index 0: not lo where a stride is negative
    strides: tuple[int, ...] = ()  # bytes
    full: tuple[int, ...] = ()  # the shape of the object itself, before the file's view of it
    contiguous: bool = True
    extra: dict[str, Any] = field(default_factory=dict[str, Any])  # of its leaf in the tree
    size: int = field(init=False)  # bytes in the file
    pieces: int = 1  # copies out of it that are still to come
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: Bytes | None = None

    def __post_init__(self) -> None:
        self.size = nbytes(self.dtype, self.shape)

    def bytes(self) -> Bytes:
        """Its bytes in C order; made on first use where the memory is elsewhere or scattered."""
        made = self._made
        if made is None:
            with self._lock:
                made = self._made
                if made is None:
                    made = self._made = _bytes(self.data)
        return made

    def copied(self) -> None:
        """One of its pieces is in the arena; after the last one a made copy is dropped."""
        if self.contiguous and self.device == "cpu":
            return
        with self._lock:
            self.pieces -= 1
            if self.pieces <= 0:
                self._made = None


def _bytes(data: Any) -> Bytes:
    if is_array(data):
        a = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        return a.reshape(-1).view(np.uint8) if a.size and a.itemsize else np.empty(0, np.uint8)
    if data.numel() == 0:
        return np.empty(0, np.uint8)
    t = data.cpu() if data.device.type != "cpu" else data
    torch = sys.modules["torch"]
    t = t.contiguous().reshape(-1)
    return t.view(torch.uint8).numpy()


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")  # nobody has a tensor of a module that was never imported
    return torch is not None and isinstance(x, torch.Tensor)


def is_jax(x: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "Array") and isinstance(x, jax.Array)


def source(path: str, x: Any) -> Source | None:
    """The tensor x as a Source, or None when it is no tensor."""
    try:
        if is_array(x):
            return _from_numpy(path, "numpy", x)
        if is_scalar(x):
            return _from_numpy(path, "scalar", np.asarray(x))
        if is_torch(x):
            return _from_torch(path, x)
        if is_jax(x):
            return _from_jax(path, x)
    except Invalid as e:
        raise Invalid(f"{path or 'state'}: {e.message}", e.hint) from None
    return None


def _from_numpy(path: str, kind: str, a: npt.NDArray[Any]) -> Source:
    if isinstance(a, np.ma.MaskedArray):
        raise Invalid("masked arrays are not saved as such", "save .data and .mask")
    a = a.view(np.ndarray)
    if a.dtype.byteorder == ">" or (a.dtype.byteorder == "=" and sys.byteorder == "big"):
        a = a.astype(a.dtype.newbyteorder("<"))
    st, note = _dtypes.of_numpy(a.dtype)
    src = Source(path, kind, st, a.shape if note is None else (a.nbytes,), a, note)
    if note is not None or a.shape != src.shape:
        src.extra["shape"] = list(a.shape)
    src.full, src.strides, src.contiguous = a.shape, a.strides, a.flags.c_contiguous
    if a.nbytes:
        src.first = int(a.__array_interface__["data"][0])
        src.lo, src.hi = _bounds(src.first, a)
    return src


def _bounds(first: int, a: npt.NDArray[Any]) -> tuple[int, int]:
    """Addresses of the first byte and behind the last of a non-empty array."""
    lo = hi = first
    for n, s in zip(a.shape, a.strides, strict=True):
        lo, hi = (lo + (n - 1) * s, hi) if s < 0 else (lo, hi + (n - 1) * s)
    return lo, hi + a.itemsize


def _from_torch(path: str, x: Any) -> Source:
    torch = sys.modules["torch"]
    if x.layout is not torch.strided or x.is_quantized or getattr(x, "is_nested", False):
        raise Invalid(f"a torch tensor of layout {x.layout} is not plain memory", "save its dense parts")
    if x.device.type == "meta":
        raise Invalid("a torch tensor on the meta device has no bytes")
    t = x.detach().resolve_conj().resolve_neg()
    st, note = _dtypes.of_torch(t.dtype)
    shape = tuple(t.shape)
    if st == "F4":
        if shape:
            shape = (*shape[:-1], 2 * shape[-1])
        else:
            st, note = "U8", "torch:float4_e2m1fn_x2"
    size = t.element_size()
    src = Source(path, "torch", st, shape if note is None else (t.numel() * size,), t, note)
    if note is not None:
        src.extra["shape"] = list(t.shape)
    if x.requires_grad:
        src.extra["grad"] = True
    if isinstance(x, torch.nn.Parameter):
        src.extra["param"] = True
    src.full = tuple(t.shape)
    src.strides = tuple(s * size for s in t.stride())
    src.contiguous = t.is_contiguous()
    src.device = str(t.device)
    if t.numel():
        src.lo = src.first = t.data_ptr()
        src.hi = src.lo + sum((n - 1) * s for n, s in zip(src.full, src.strides, strict=True)) + size
    return src


def _from_jax(path: str, x: Any) -> Source:
    if not x.is_fully_addressable:
        raise Invalid("this jax array lies on several hosts", "save each process's x.addressable_shards as ckptd.Piece")
    try:
        a = np.asarray(x)
    except TypeError:
        raise Invalid(
            f"jax arrays of {x.dtype} have no plain bytes", "jax.random.key_data turns keys into data"
        ) from None
    return _from_numpy(path, "jax", a)


@dataclass(eq=False)
class Stored:
    """What share decided for one Source: the tensor in the file it lies in, and where in it (None: all of it)."""

    src: Source
    offset: int | None = None  # bytes from the beginning of src to its element with index 0


def share(sources: list[Source]) -> tuple[list[Source], dict[int, Stored]]:
    """Find sources that share memory. Gives the tensors to write and, by id of a source, where it is stored.

    Sources whose bytes overlap are written once: as the one of them that covers
    all the others, else as the span of memory they lie in; when that span is
    larger than the sources apart (two columns of a wide matrix), apart.
    """
    write: list[Source] = []
    at: dict[int, Stored] = {id(s): Stored(s) for s in sources}
    order = sorted((s for s in sources if s.hi > s.lo), key=lambda s: (s.device, s.lo, -s.hi))
    i = 0
    spans: dict[int, Source] = {}  # by id of its first source
    while i < len(order):
        j, hi = i + 1, order[i].hi
        while j < len(order) and order[j].device == order[i].device and order[j].lo < hi:
            hi = max(hi, order[j].hi)
            j += 1
        if j - i > 1:
            _share(order[i:j], hi, at, spans)
        i = j
    written: set[int] = set()
    for s in sources:
        home = at[id(s)].src
        if id(home) not in written:
            written.add(id(home))
            write.append(home)
    return write, at


def _share(group: list[Source], hi: int, at: dict[int, Stored], spans: dict[int, Source]) -> None:
    lo = group[0].lo
    first: dict[Any, Source] = {}
    for s in group:  # the same view under several names
        twin = first.setdefault((s.first, s.full, s.strides, s.dtype, str(s.note)), s)
        if twin is not s:
            at[id(s)] = Stored(twin)
    kinds = list(first.values())
    if len(kinds) == 1:
        return
    owner = next((s for s in kinds if s.lo == lo and s.hi == hi and s.contiguous), None)
    if owner is None:
        apart = sum(int(np.prod(s.full, dtype=np.int64)) * _itemsize(s) for s in kinds)
        if hi - lo > apart:
            return
        owner = _span(kinds[0], lo, hi)
        spans[id(kinds[0])] = owner
    for s in group:
        if s is not owner:
            at[id(s)] = Stored(owner, s.first - lo)


def _itemsize(s: Source) -> int:
    return s.data.itemsize if is_array(s.data) else s.data.element_size()


def _span(s: Source, lo: int, hi: int) -> Source:
    """The memory [lo, hi) as a tensor of bytes. Every byte of it belongs to one of the sources that overlap there."""
    if s.device == "cpu":
        buf = (ctypes.c_uint8 * (hi - lo)).from_address(lo)
        data: Any = np.frombuffer(memoryview(buf), np.uint8)
    else:
        torch = sys.modules["torch"]
        storage = s.data.untyped_storage()
        data = torch.empty(0, dtype=torch.uint8, device=s.data.device)
        data = data.set_(storage, lo - storage.data_ptr(), (hi - lo,), (1,))
    return Source(s.path + "~storage", "bytes", "U8", (hi - lo,), data, full=(hi - lo,), strides=(1,))
