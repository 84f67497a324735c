"""One array that is a file of a version, mapped where it lies."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _api
from .._errors import Corrupt, Incomplete, Invalid, NotFound
from ._index import EMPTY, FILE, Index
from ._version import Version

if TYPE_CHECKING:
    from .._client import Client


def memmap(
    ref: str, dtype: npt.DTypeLike | None = None, shape: tuple[int, ...] | None = None, *, file: str | None = None,
    client: Client | None = None,
) -> npt.NDArray[Any]:  # fmt: skip
    """A read-only array over a file of a version, in the node's own copy of its pack; read when it is used.

    file: its path; not needed where the version has one file. An .npy file says its dtype and shape itself; any other
    is plain numbers of `dtype`, in C order, as many as there are, or of `shape` (a -1 is found).
    Raises Incomplete while the pack is not whole on this node, NotFound, Invalid where the numbers do not fit.
    """
    version = Version(client or _api.default(), ref)
    try:
        index = version.index
        number = _file(index, ref, file)
        f = index.file(number)
        raw = np.empty(0, np.uint8) if f.pack == EMPTY else version.pack(f.pack)
        if raw is None:
            raise Incomplete(f"{ref}: the pack of this file is not whole on this node", f"ckpt dataset warm {ref}")
        raw = raw[f.offset : f.offset + f.size]
        if index.name(number).endswith(b".npy"):
            return _npy(raw, dtype, shape, ref)
    finally:
        version.close()  # the mapping stays
    kind = np.dtype(np.uint8 if dtype is None else dtype)
    if not kind.itemsize or raw.size % kind.itemsize:
        raise Invalid(f"{ref}: {raw.size} bytes are no whole number of {kind}")
    try:
        return raw.view(kind).reshape((-1,) if shape is None else shape)
    except ValueError as e:
        raise Invalid(f"{ref}: {raw.size // kind.itemsize} numbers of {kind} as {shape}: {e}") from e


def _file(index: Index, ref: str, path: str | None) -> int:
    if path is not None:
        found = index.find(path.encode(errors="surrogateescape"))
        if found is None or index.kind(found) != FILE:
            raise NotFound(f"{ref} has no file {path!r}")
        return found
    if index.files != 1:
        raise Invalid(f"{ref} has {index.files} files", "name one: file=PATH")
    return next(i for i in range(index.entries) if index.kind(i) == FILE)


def _npy(raw: npt.NDArray[np.uint8], dtype: Any, shape: Any, ref: str) -> npt.NDArray[Any]:
    head = io.BytesIO(raw[: 1 << 16].tobytes())
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, fortran, kind = read(head)
    except ValueError as e:
        raise Corrupt(f"{ref}: no .npy file: {e}") from e
    if kind.hasobject:
        raise Invalid(f"{ref}: an .npy file of Python objects cannot be mapped")
    if (dtype is not None and np.dtype(dtype) != kind) or (shape is not None and tuple(shape) != found):
        raise Invalid(f"{ref}: the file has {kind} {found}, not {dtype} {shape}")
    size = math.prod(found) * kind.itemsize
    data = raw[head.tell() : head.tell() + size]
    if data.size != size:
        raise Corrupt(f"{ref}: the .npy file has fewer bytes than its header says")
    return np.ndarray(found, kind, buffer=data, order="F" if fortran else "C")
