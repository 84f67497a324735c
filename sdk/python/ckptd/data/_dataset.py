"""A version as training sees it: numbered samples, and an epoch's order over them."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _api
from .._errors import Invalid
from .._kinds import is_dict
from .._launch import rank_world
from .._order import Cursor, Int64s, Mode, Order
from .._tensors import Bytes
from ._index import Field, Index
from ._version import Version

if TYPE_CHECKING:
    from .._client import Client
    from ._loader import Loader
    from ._sampler import InOrder, Sampler

AHEAD = 64  # samples that iterating reads at once

Sample = Any  # bytes, or name -> bytes; what `decode` makes of it


class Dataset:
    """The samples of one version, by number and in the shuffled order of an epoch.

    ref: NAME@VERSION, NAME@latest or NAME; what "latest" is, is decided here once.
    seed, epoch: 0 to 2^64-1. mode: "global", "window", or "window:SLICE:GROUP". window: (slice, group) for
    mode="window": samples of a slice (default: what a pack has on average) and slices mixed at a time (default 16).
    rank, world_size: of this process; by default torch.distributed's, torchrun's or SLURM's, else alone.
    drop_last: leave out the last samples of an epoch (n % world_size of them), so that all ranks have the same number.
    decode: called with each sample: its bytes where it has one field, else a dict of bytes by name (the extension of
    a file, where several files are one sample).

    Iterating gives this rank's samples from the cursor to the end of the epoch and moves the cursor; the next
    iteration begins the epoch anew (see set_epoch). Raises NotFound, Invalid, Unavailable, Corrupt.
    """

    def __init__(
        self, ref: str, *, seed: int = 0, epoch: int = 0, mode: str = "global",
        window: tuple[int, int] | None = None, rank: int | None = None, world_size: int | None = None,
        drop_last: bool = False, decode: Callable[[Any], Any] | None = None, client: Client | None = None,
    ) -> None:  # fmt: skip
        self._client = client or _api.default()
        self._rank_world = (rank, world_size)
        self.drop_last, self.decode = drop_last, decode
        self._version: Version | None = None
        version = self._open(ref)
        self.ref = version.ref
        self.seed, self.epoch = seed, epoch
        self.mode = _mode(mode, window, version.index)
        self.at = 0  # samples of the epoch that all ranks together have taken
        self._order: tuple[tuple[Any, ...], Order] | None = None
        self._told = 0.0
        _ = self.order  # refuses a bad seed or epoch now

    def _open(self, ref: str) -> Version:
        if self._version is None:
            self._version = Version(self._client, ref)
        return self._version

    @property
    def version(self) -> Version:
        """The version's index and packs; opened when this process has not yet."""
        return self._open(self.ref)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_version": None}

    def close(self) -> None:
        """Hang up. The data set can be used again."""
        if self._version is not None:
            self._version.close()
            self._version = None

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ckptd.data.Dataset {self.ref}: {len(self)} samples, {self.mode}, seed {self.seed}>"

    def __len__(self) -> int:
        return self.version.index.samples

    @property
    def digest(self) -> bytes:
        """Of the version, 32 bytes."""
        return self.version.index.digest

    @property
    def rank(self) -> tuple[int, int]:
        """Rank and world size."""
        return rank_world(*self._rank_world)

    @property
    def order(self) -> Order:
        """The order of the epoch over all samples."""
        what = (self.seed, self.epoch, self.mode)
        if self._order is None or self._order[0] != what:
            self._order = (what, Order(len(self), self.digest, self.seed, self.epoch, self.mode))
        return self._order[1]

    def __getitem__(self, i: int) -> Sample:
        return self.samples([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> builtins.list[Sample]:  # torch's DataLoader asks for batches so
        return self.samples(indices)

    def samples(self, indices: Sequence[int] | Int64s) -> builtins.list[Sample]:
        """The samples with these numbers, decoded, or as bytes of their own."""
        return [self._made(raw) for raw in self.batch(indices)]

    def _made(self, raw: Bytes | dict[str, Bytes]) -> Sample:
        s: Any = {k: v.tobytes() for k, v in raw.items()} if isinstance(raw, dict) else raw.tobytes()
        return s if self.decode is None else self.decode(s)

    def batch(self, indices: Sequence[int] | Int64s) -> builtins.list[Any]:
        """The samples with these numbers without a copy: for each a read-only array of uint8 over the mapped pack, or
        a dict of them by name. An array keeps its pack mapped. IndexError for a number out of range."""
        index, n = self.version.index, len(self)
        samples: builtins.list[builtins.list[Field]] = []
        for i in indices:
            i = int(i)
            samples.append(index.sample(i + n if -n <= i < 0 else i))
        arrays = iter(self.version.read([f for s in samples for f in s]))
        out: builtins.list[Any] = []
        for s in samples:
            if len(s) == 1:
                out.append(next(arrays))
            else:
                out.append(dict(zip(_names(index, s), arrays, strict=False)))  # takes as many as there are names
        return out

    def key(self, i: int) -> str:
        """The path of sample i without its extension; what is a part of a file has "#" and a number behind it."""
        index = self.version.index
        f = index.sample(i)[0]
        folder, _, name = index.path(f.file).rpartition(b"/")
        stem = name[:1] + name[1:].partition(b".")[0]
        key = (folder + b"/" + stem if folder else stem).decode(errors="surrogateescape")
        whole = index.file(f.file)
        return key if (f.offset, f.size) == (whole.offset, whole.size) else f"{key}#{i}"

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch at its first sample."""
        self.epoch, self.at = epoch, 0
        _ = self.order

    def state_dict(self) -> dict[str, Any]:
        """Where the job is: {"cursor": text}, the same on every rank that has taken as many samples."""
        return {"cursor": str(self.cursor)}

    @property
    def cursor(self) -> Cursor:
        """The same as a value."""
        return Cursor(self.ref, self.digest, self.seed, self.epoch, self.at, self.mode)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where state_dict was taken, with any number of ranks. Invalid for another version's state."""
        c = Cursor.parse(str(state.get("cursor", "")))
        if c.dataset != self.ref or c.digest != self.digest:
            # Equal content is not enough: the order is one of numbers, and those follow how a version was packed.
            same = ", which has the same content in another order of its samples" if c.digest == self.digest else ""
            raise Invalid(
                f"the state is of {c.dataset}, this data set is {self.ref}{same}",
                f"open Dataset({c.dataset!r}) to go on, or begin an epoch of the other version",
            )
        if c.at > len(self):
            raise Invalid(f"the state is at sample {c.at} of {len(self)}")
        self.seed, self.epoch, self.at, self.mode = c.seed, c.epoch, c.at, c.mode

    def end(self) -> int:
        """The position after the epoch's last."""
        n = len(self)
        return n - n % self.rank[1] if self.drop_last else n

    def positions(self, at: int) -> range:
        """This rank's positions of the epoch from `at` on."""
        rank, world = self.rank
        return range(at + (rank - at) % world, self.end(), world)

    def taken(self, at: int, count: int) -> int:
        """What the cursor is after each rank took `count` samples from `at` on."""
        return min(self.end(), at + count * self.rank[1])

    def __iter__(self) -> Iterator[Sample]:
        if self.at >= self.end():
            self.at = 0
        begun, count = self.at, 0
        mine = self.positions(begun)
        if not len(mine):
            self.at = self.end()
        for lo in range(0, len(mine), AHEAD):
            part = mine[lo : lo + AHEAD]
            self.tell()
            for sample in self.samples(self.order.at(np.asarray(part))):
                count += 1
                self.at = self.end() if count == len(mine) else self.taken(begun, count)
                yield sample

    def tell(self, at: int | None = None) -> None:
        """Tell the daemon where this reader is (at the cursor, if `at` is not given), once a second, so that it
        fetches what comes next. Warns once where the daemon refuses to hear it."""
        now = time.monotonic()
        if now - self._told < 1:
            return
        self._told = now
        self.version.tell(self.cursor if at is None else replace(self.cursor, at=at), *self.rank)

    def in_order(self) -> InOrder:
        """The samples of this epoch by position, as a source for grain; data[i] is by number."""
        from ._sampler import InOrder

        return InOrder(self)

    def sampler(self) -> Sampler:
        """The rest of the epoch's order as `sampler=` of torch's DataLoader. With torchdata's StatefulDataLoader the
        state_dict of that is exact; with torch's own the loader() of this class is."""
        from ._sampler import Sampler

        return Sampler(self)

    def loader(self, batch_size: int = 1, **options: Any) -> Loader:
        """A loader of batches; see ckptd.data.Loader."""
        from ._loader import Loader

        return Loader(self, batch_size, **options)


def _mode(mode: str, window: tuple[int, int] | None, index: Index) -> Mode:
    if mode != "window" and window is None:
        return Mode.parse(mode)
    if mode not in ("window", "global"):
        raise Invalid(f"mode={mode!r} and window={window}: give one of them")
    slice_, group = window or (0, 0)
    return Mode(slice_ or max(1, -(-index.samples // max(1, index.packs))), group)


def _names(index: Index, fields: Sequence[Field]) -> builtins.list[str]:
    """Names of a sample's fields: the files' extensions, their names, or numbers; whatever first tells them apart."""
    files = [index.name(f.file).decode(errors="surrogateescape") for f in fields]
    exts = [f[1:].partition(".")[2] for f in files]
    for names in (exts, files):
        if all(names) and len(builtins.set(names)) == len(names):
            return names
    return [str(i) for i in range(len(fields))]


def webdataset(ref: str, **options: Any) -> Iterator[dict[str, Any]]:
    """This rank's samples of an epoch as webdataset gives them: {"__key__": …, extension: bytes}. A sample of one
    field has the extension of its file. Options are those of Dataset."""
    with Dataset(ref, **options) as d:
        index = d.version.index
        for i in map(int, (s for p in d.positions(0) for s in d.order.at(p))):
            fields = index.sample(i)
            d.tell()
            raw = d.batch([i])[0]
            if not is_dict(raw):
                name = index.name(fields[0].file).decode(errors="surrogateescape")
                raw = {name[1:].partition(".")[2] or "bin": raw}
            yield {"__key__": d.key(i), **{k: v.tobytes() for k, v in raw.items()}}
