"""isinstance for values of any type, such that a strict type checker knows what is in them: anything."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray


def is_dict(x: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(x, dict)


def is_list(x: Any) -> TypeGuard[list[Any]]:
    return isinstance(x, list)


def is_mapping(x: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(x, Mapping)


def is_mutable_mapping(x: Any) -> TypeGuard[MutableMapping[Any, Any]]:
    return isinstance(x, MutableMapping)


def is_sequence(x: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """A list or a tuple, of which a state's sequences are made."""
    return isinstance(x, (list, tuple))


def dicts(x: Any) -> list[dict[str, Any]]:
    """A list of objects in JSON; null is an empty one."""
    return x or []


def is_array(x: Any) -> TypeGuard[NDArray[Any]]:
    return isinstance(x, np.ndarray)


def is_scalar(x: Any) -> TypeGuard[np.generic[Any]]:
    """One of numpy's own numbers, strings or dates."""
    return isinstance(x, np.generic)


def is_dtype(x: Any) -> TypeGuard[np.dtype[Any]]:
    return isinstance(x, np.dtype)


def is_blob(x: Any) -> TypeGuard[bytes | bytearray | memoryview]:
    return isinstance(x, (bytes, bytearray, memoryview)) and not isinstance(x, np.generic)


def is_tuple(x: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(x, tuple)


def is_span(x: Any) -> TypeGuard[range | slice[Any, Any, Any]]:
    return isinstance(x, (range, slice))
