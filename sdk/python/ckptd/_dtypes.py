"""Element types: their names in numpy, torch and safetensors.

What safetensors has no word for (complex128, datetime64, strings, records, 4-bit
integers …) is stored as raw U8 and its own type noted beside the tensor, so that
it comes back as it was.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from ._errors import Corrupt, Invalid
from ._kinds import is_sequence

NUMPY: dict[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "bool_": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
# torch uses the same words; its 4-bit floats come two in a byte, as in the file.
TORCH: dict[str, str] = {**NUMPY, "float4_e2m1fn_x2": "F4"}

_NATIVE = {st: name for name, st in NUMPY.items() if name != "bool_"}
_TORCH_NATIVE = {st: name for name, st in TORCH.items() if name != "bool_"}

# Without ml_dtypes these bits come back in the unsigned integer of their width;
# `arr.dtype.metadata["ckptd.dtype"]` says what they are, and saving honours it.
NOTE = "ckptd.dtype"
_WIDTH: dict[str, Any] = {"BF16": np.uint16}

_cache: dict[str, np.dtype[Any]] = {}
_names: dict[np.dtype[Any], tuple[str, Any]] = {}


def optional(module: str) -> Any | None:
    """A module if it can be imported."""
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except ImportError:
        return None


def of_numpy(dtype: np.dtype[Any]) -> tuple[str, Any]:
    """(safetensors name, note) of a numpy type; the note is None unless the bytes are stored raw."""
    if dtype.metadata and NOTE in dtype.metadata:
        return str(dtype.metadata[NOTE]), None
    if dtype in _names:  # equal types are one key whatever their metadata, so that was looked at first
        return _names[dtype]
    out = _names[dtype] = _of_numpy(dtype)
    return out


def _of_numpy(dtype: np.dtype[Any]) -> tuple[str, Any]:
    if dtype.hasobject:
        raise Invalid("numpy arrays of Python objects are not tensors")
    if dtype.name in NUMPY:
        return NUMPY[dtype.name], None
    if dtype.isbuiltin == 2:  # a type of ml_dtypes that numpy's own descriptions cannot name
        return "U8", "ml:" + dtype.name
    return "U8", _listed(np.lib.format.dtype_to_descr(dtype))


def of_torch(dtype: Any) -> tuple[str, Any]:
    """The same for a torch type."""
    name = str(dtype).removeprefix("torch.")
    if name in TORCH:
        return TORCH[name], None
    return "U8", "torch:" + name


def to_numpy(st: str, note: Any = None) -> np.dtype[Any]:
    """The numpy type for a safetensors name, or for the note of a raw tensor."""
    if note is not None:
        return _from_note(note)
    if st not in _cache:
        _cache[st] = _numpy(st)
    return _cache[st]


def _numpy(st: str) -> np.dtype[Any]:
    name = _NATIVE.get(st, "")
    if name == "bool":  # numpy before 1.24 has another of that name, and warns
        return np.dtype(np.bool_)
    if hasattr(np, name):
        return np.dtype(getattr(np, name))
    if name and (ml := optional("ml_dtypes")) is not None and hasattr(ml, name):
        return np.dtype(getattr(ml, name))
    return np.dtype(_WIDTH.get(st, np.uint8), metadata={NOTE: st})


def to_torch(torch: Any, st: str, note: Any = None) -> Any | None:
    """The torch type, or None where this torch has none."""
    if isinstance(note, str) and note.startswith("torch:"):
        name = note[6:]
    elif note is not None:
        return None
    else:
        name = _TORCH_NATIVE.get(st, "")
    dtype = getattr(torch, name, None) if name.isidentifier() else None
    return dtype if isinstance(dtype, torch.dtype) else None


def _listed(descr: Any) -> Any:
    return [_listed(d) for d in descr] if is_sequence(descr) else descr


def _from_note(note: Any) -> np.dtype[Any]:
    """A numpy type from its JSON description, which may be hostile."""
    if isinstance(note, str) and note.startswith("torch:"):
        note = {"torch:complex128": "<c16"}.get(note, "|u1")
    try:
        if isinstance(note, str) and note.startswith("ml:"):
            ml = optional("ml_dtypes")
            if ml is None:
                raise Invalid(f"this array has elements of {note[3:]}", "pip install ml_dtypes")
            return np.dtype(getattr(ml, note[3:]))
        dtype = np.lib.format.descr_to_dtype(_tupled(note))
    except (TypeError, ValueError, AttributeError, RecursionError) as e:
        if isinstance(e, Invalid):
            raise
        raise Corrupt(f"array type {str(note)[:80]!r}: {e}") from None
    if dtype.hasobject or (dtype.itemsize == 0 and not isinstance(note, str)):
        raise Corrupt(f"array type {str(note)[:80]!r} is not plain data")
    return dtype


def _tupled(descr: Any) -> Any:
    """JSON's lists back into the tuples that numpy writes: [[name, type, shape?], …]."""
    if isinstance(descr, str):
        return descr
    fields: list[Any] = []
    for f in descr:
        name = f[0] if isinstance(f[0], str) else tuple(f[0])
        fields.append((name, _tupled(f[1])) if len(f) == 2 else (name, _tupled(f[1]), tuple(f[2])))
    return fields
