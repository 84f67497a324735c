"""The shuffled order of an epoch, computed and not stored: the twin of Go's datasets/order (ORDER.md there).

Positions and samples go in and come out as numpy arrays of int64, many at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._blake3 import derive_key
from ._errors import Invalid

CONTEXT = "ckptd 2026-11-24 datasets/order v1"
MAX_SAMPLES = 1 << 48
MAX_GROUP = 1 << 24
DEFAULT_GROUP = 16  # slices of a block where nobody says how many
MAX_CURSOR = 1024  # bytes of a cursor's text
_ROUNDS = 8

Int64s = npt.NDArray[np.int64]
_U64s = npt.NDArray[np.uint64]
Indices = Int64s | Sequence[int] | int


@dataclass(frozen=True)
class Mode:
    """How far a sample may travel: anywhere (the default), or within `group` slices of `slice` samples."""

    slice: int = 0  # samples, about a pack's worth; 0: global
    group: int = 0  # slices that are mixed in one block

    def __post_init__(self) -> None:
        if self.slice and not self.group:
            object.__setattr__(self, "group", DEFAULT_GROUP)
        if (self.slice, self.group) == (0, 0):
            return
        if not 1 <= self.slice <= MAX_SAMPLES:
            raise Invalid(f"order's slice of {self.slice} samples: want 1 to 2^48")
        if not 1 <= self.group <= MAX_GROUP:
            raise Invalid(f"order's group of {self.group} slices: want 1 to {MAX_GROUP}")

    def __str__(self) -> str:
        return f"window:{self.slice}:{self.group}" if self.slice else "global"

    @classmethod
    def parse(cls, text: str) -> Mode:
        """What str() writes, and nothing else."""
        if text == "global":
            return cls()
        m = re.fullmatch(r"window:([1-9][0-9]{0,14}):([1-9][0-9]{0,7})", text, re.ASCII)
        if not m:
            raise Invalid(f"order's mode {text[:100]!r}: want global or window:SLICE:GROUP")
        return cls(int(m[1]), int(m[2]))


def key(digest: bytes, seed: int, epoch: int) -> tuple[int, ...]:
    """The sixteen words an order is drawn from. digest: 32 bytes, of the version; seed, epoch: 0 to 2^64-1."""
    if len(digest) != 32:
        raise Invalid(f"a version's digest has 32 bytes, not {len(digest)}")
    for name, v in (("seed", seed), ("epoch", epoch)):
        if not 0 <= v < 1 << 64:
            raise Invalid(f"{name} {v}: want 0 to 2^64-1")
    material = digest + seed.to_bytes(8, "little") + epoch.to_bytes(8, "little")
    out = derive_key(CONTEXT, material, 128)
    return tuple(int.from_bytes(out[i : i + 8], "little") for i in range(0, 128, 8))


def _u(n: int) -> np.uint64:
    return np.uint64(n)


def _scramble(v: _U64s, k: Any) -> _U64s:
    """The round function F."""
    z = v ^ k
    z = (z ^ (z >> _u(32))) * _u(0x9E6C63D0876A9A47)
    z = (z ^ (z >> _u(29))) * _u(0xD1342543DE82EF95)
    return z ^ (z >> _u(32))


def _permute(x: _U64s, n: _U64s, words: tuple[int, ...], tweak: _U64s, *, back: bool) -> _U64s:
    """P of ORDER.md, element by element: x below n, each with an n and a tweak of its own."""
    out = x.copy()
    w = np.zeros(n.shape, np.uint64)
    for size in np.unique(n):  # a handful: full blocks, the short one, the last
        w[n == size] = (int(size) - 1).bit_length() if size > 1 else 0
    right = w >> _u(1)
    left = w - right
    todo = np.flatnonzero(n > 1)
    rounds = range(_ROUNDS - 1, -1, -1) if back else range(_ROUNDS)
    while todo.size:
        b, a, t = right[todo], left[todo], tweak[todo]
        lft, rgt = out[todo] >> b, out[todo] & ((_u(1) << b) - _u(1))
        for i in rounds:
            k = _u(words[i]) ^ t
            if i % 2 == 0:
                lft ^= _scramble(rgt, k) >> (_u(64) - a)
            else:  # numpy, as C, does not shift by 64: where the right half is empty, it stays empty
                rgt ^= np.where(b > 0, _scramble(lft, k) >> (_u(64) - np.maximum(b, _u(1))), _u(0))
        out[todo] = lft << b | rgt
        todo = todo[out[todo] >= n[todo]]
    return out


class Order:
    """The order of one epoch over n samples.

    digest: of the version, 32 bytes. Raises Invalid for numbers out of their range.
    """

    def __init__(self, n: int, digest: bytes, seed: int = 0, epoch: int = 0, mode: Mode | None = None) -> None:
        if not 0 <= n <= MAX_SAMPLES:
            raise Invalid(f"order of {n} samples: want 0 to 2^48")
        self.n, self.mode = n, mode or Mode()
        words = key(digest, seed, epoch)
        self._outer, self._inner = words[:_ROUNDS], words[_ROUNDS:]
        self._slice = max(1, min(self.mode.slice, n))
        self._slots = -(-n // self._slice)
        self._group = max(1, min(self.mode.group, self._slots))
        self._block = self._slice * self._group
        self._missing = self._slots * self._slice - n  # samples that the last slice lacks
        self._short_slot = self._short_block = self._short_end = 0
        if self.mode.slice and n:
            self._short_slot = int(self._slices(np.array([self._slots - 1], np.uint64), back=True)[0])
            self._short_block = self._short_slot // self._group
            self._short_end = min((self._short_block + 1) * self._block, n + self._missing) - self._missing

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Indices) -> Int64s:
        """The samples at these positions (0 to n-1); IndexError outside of them."""
        p = self._checked(positions, "position")
        if not self.mode.slice:
            return self._global(p, back=False)
        p = np.where(p >= self._short_end, p + self._missing, p)
        c = p // self._block
        q = self._within(c, p - c * self._block, back=False)
        slot = c * self._group
        hole = (self._short_slot - slot) * self._slice + self._slice - self._missing
        q = np.where((c == self._short_block) & (q >= hole), q + self._missing, q)
        k = q // self._slice
        slices = self._slices((slot + k).astype(np.uint64), back=False).astype(np.int64)
        return slices * self._slice + q - k * self._slice

    def find(self, samples: Indices) -> Int64s:
        """The positions of these samples: find(at(p)) == p."""
        s = self._checked(samples, "sample")
        if not self.mode.slice:
            return self._global(s, back=True)
        slices = s // self._slice
        slot = self._slices(slices.astype(np.uint64), back=True).astype(np.int64)
        c = slot // self._group
        q = (slot - c * self._group) * self._slice + s - slices * self._slice
        q = np.where((c == self._short_block) & (slot > self._short_slot), q - self._missing, q)
        p = c * self._block + self._within(c, q, back=True)
        return np.where(c > self._short_block, p - self._missing, p)

    def _checked(self, v: Indices, what: str) -> Int64s:
        a = np.atleast_1d(np.asarray(v, np.int64))
        if a.size and not (int(a.min()) >= 0 and int(a.max()) < self.n):
            raise IndexError(f"{what} {int(a.min())} to {int(a.max())} of {self.n}")
        return a

    def _global(self, v: Int64s, *, back: bool) -> Int64s:
        n, zero = np.full(v.shape, self.n, np.uint64), np.zeros(v.shape, np.uint64)
        return _permute(v.astype(np.uint64), n, self._outer, zero, back=back).astype(np.int64)

    def _slices(self, v: _U64s, *, back: bool) -> _U64s:
        n, zero = np.full(v.shape, self._slots, np.uint64), np.zeros(v.shape, np.uint64)
        return _permute(v, n, self._outer, zero, back=back)

    def _within(self, c: Int64s, q: Int64s, *, back: bool) -> Int64s:
        """The permutation of the samples of block c."""
        n = np.minimum(self._group, self._slots - c * self._group) * self._slice
        n = np.where(c == self._short_block, n - self._missing, n)
        tweak = _scramble(c.astype(np.uint64) + _u(1), _u(0x6A09E667F3BCC908))
        return _permute(q.astype(np.uint64), n.astype(np.uint64), self._inner, tweak, back=back).astype(np.int64)


_CURSOR = re.compile(
    r"([A-Za-z0-9._/-]+)@([1-9][0-9]{0,11});digest=([0-9a-f]{64});seed=(0|[1-9][0-9]{0,19});"
    r"epoch=(0|[1-9][0-9]{0,19});at=(0|[1-9][0-9]{0,14});mode=([a-z0-9:]+)",
    re.ASCII,
)


@dataclass(frozen=True)
class Cursor:
    """Where a job is in its data. str() and parse() are its one text form."""

    dataset: str  # NAME@VERSION
    digest: bytes  # of the version, 32 bytes
    seed: int = 0
    epoch: int = 0
    at: int = 0  # samples of the epoch that all ranks together have taken
    mode: Mode = Mode()

    def __str__(self) -> str:
        return (
            f"{self.dataset};digest={self.digest.hex()};seed={self.seed};epoch={self.epoch};at={self.at}"
            f";mode={self.mode}"
        )

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """What str() writes; anything else is Invalid."""
        m = _CURSOR.fullmatch(text) if len(text) <= MAX_CURSOR else None
        if m is None or not _name(m[1]):
            raise Invalid(
                f"cursor {text[:200]!r}: want NAME@VERSION;digest=HEX;seed=N;epoch=N;at=N;mode=MODE",
                "it is what state_dict() of the data set gave",
            )
        c = cls(f"{m[1]}@{m[2]}", bytes.fromhex(m[3]), int(m[4]), int(m[5]), int(m[6]), Mode.parse(m[7]))
        if max(c.seed, c.epoch) >= 1 << 64 or c.at > MAX_SAMPLES or not any(c.digest):
            raise Invalid(f"cursor {text[:200]!r}: a number is out of its range")
        return c


def _name(name: str) -> bool:
    """Whether this can be a data set's name, which has the rules of a run's."""
    parts = name.split("/")
    return len(name) <= 400 and all(p and p[0] != "." and p != "latest" for p in parts)
