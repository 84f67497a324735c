"""ckptd:// for fsspec: what the daemon has as files, for pandas, pyarrow, datasets, zarr and whoever opens URLs.

    import fsspec, pandas
    pandas.read_parquet("ckptd://datasets/rows/latest/part-0.parquet")
    with fsspec.open("ckptd://checkpoints/llama/1200/config.json", "w") as f: ...

1. The tree is that of `ckpt mount`: checkpoints/RUN/STEP/FILE and datasets/NAME/VERSION/PATH, with `latest` for the
   newest. Only what is committed is there. Listings are not cached, and bytes are checked before they are given.
2. A file is written once. It appears when it was closed without an exception, as a set of its own, and is on this
   node's disk then; of a `with fs.transaction:` or of one put() all files of a step are one set, and all below
   datasets/NAME/.next are the data set's next version, as `ckpt dataset import` makes it. Until then nothing is seen.
   Writing a step again makes a new attempt, which is what is read then; mode "x" refuses to.
3. The same object serves threads and forked processes. It is synchronous; fsspec's AsyncFileSystemWrapper makes it
   asynchronous, and cat_ranges reads in parallel by itself.
"""
# pyright: standard
# (fsspec has no types)

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from . import _api
from ._client import Client
from ._each import each
from ._errors import Error, Invalid, NotFound, Unauthorized, from_wire
from ._files import Upload, save_files
from ._places import MANIFEST, Node, Places
from ._program import command
from ._shard import Checkpoint

NEXT = ".next"  # the version of a data set that is being written
IMPORT_SECONDS = 24 * 3600.0
_EXITS = {2: "invalid", 3: "not_found", 4: "corrupt", 5: "no_space", 6: "conflict", 7: "incomplete"}  # of ckpt


class _Transaction(Transaction):
    """All files of it at once: those of one step are one set, those of one data set one version."""

    def complete(self, commit: bool = True) -> None:
        fs, files = self.fs, list(self.files)
        self.files.clear()
        try:
            if commit and files:
                assert fs is not None
                fs.commit(files)
        finally:
            for f in files:
                f.discard()
            super().complete(commit=False)


class CkptdFileSystem(AbstractFileSystem):
    """See ckptd.fsspec. socket: the daemon's; by default it is found as ckptd.load finds it, at every call."""

    protocol = "ckptd"
    root_marker = ""
    transaction_type = _Transaction

    def __init__(self, socket: str | None = None, asynchronous: bool = False, **storage_options: Any) -> None:
        if asynchronous:
            raise Invalid("ckptd:// is synchronous", "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper(fs)")
        super().__init__(socket=socket, **storage_options)
        self._own = Client(socket) if socket is not None else None
        self._places = Places()

    @property
    def client(self) -> Client:
        return self._own or _api.default()

    @property
    def fsid(self) -> str:
        return "ckptd"

    # --- reading ---

    def find_node(self, path: str) -> Node:
        """What is at a path; NotFound."""
        return self._places.find(self.client, _plain(path))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = _plain(path)
        return _info(path, self.find_node(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = _plain(path)
        node = self.find_node(path)
        if node.list is None:
            found = [_info(path, node)]
        else:
            found = sorted((_info(f"{path}/{n}" if path else n, c) for n, c in node.list()), key=lambda i: i["name"])
        return found if detail else [i["name"] for i in found]

    def exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:  # and nothing else: a daemon that is away says nothing of what is there
            return False
        return True

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        node = self._file(path)
        start, end, _ = slice(start, end).indices(node.size)
        assert node.read is not None
        return node.read(start, end) if end > start else b""

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:  # fmt: skip
        if max_gap is not None:
            raise NotImplementedError("max_gap")
        if not isinstance(paths, list):
            raise TypeError(f"paths is a {type(paths).__name__}, want a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts and {len(ends)} ends")

        def one(i: int) -> Any:
            try:
                return self.cat_file(paths[i], starts[i], ends[i])
            except Exception as e:
                if on_error != "return":
                    raise
                return e

        return each(range(len(paths)), one)

    def created(self, path: str) -> datetime:
        return self._time(path)

    def modified(self, path: str) -> datetime:
        return self._time(path)

    def ukey(self, path: str) -> str:
        """Equal for equal bytes, where a hash of them is known."""
        facts = self.find_node(path).facts
        return str(facts.get("hash") or facts.get("set") or "") or super().ukey(path)

    def _time(self, path: str) -> datetime:
        made = self.find_node(path).facts.get("created")
        if made is None:
            raise NotFound(f"{path} has no time", "sets, their files, and what is in data sets have")
        return made

    def _file(self, path: str) -> Node:
        node = self.find_node(path)
        if node.read is None:
            raise IsADirectoryError(f"{path} is a folder") if node.list is not None else NotFound(f"{path} is no file")
        return node

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True,
        cache_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        path = _plain(path)
        if mode == "rb":
            return _Reading(self, path, self._file(path), block_size, cache_options, **kwargs)
        if mode not in ("wb", "xb"):
            raise Invalid(f"mode {mode!r}: files here are read, or written once", 'use "rb", "wb" or "xb"')
        target = _target(path)
        if isinstance(target[2], str) and target[0] == "datasets" and autocommit:
            raise Invalid(f"{path}: a version is written as a whole", "with fs.transaction: ..., or fs.put(DIR, ...)")
        if mode == "xb" and self.exists(path):
            raise FileExistsError(path)
        return _Writing(self, path, target, autocommit)

    # --- writing ---

    def commit(self, files: Sequence[_Writing]) -> None:
        """Make sets and versions of these files, each as a whole."""
        groups: dict[tuple[str, ...], list[_Writing]] = {}
        for f in files:
            f.finish()
            groups.setdefault(f.target[:2] if f.target[0] == "datasets" else f.target[:3], []).append(f)
        for key, group in groups.items():
            if key[0] == "datasets":
                self._import(key[1], group)
            else:
                save_files(self.client, key[1], int(key[2]), [Upload(f.target[-1], f.spool) for f in group])

    def _import(self, name: str, files: list[_Writing]) -> None:
        with tempfile.TemporaryDirectory(prefix="ckptd-fsspec-") as folder:
            for f in files:
                to = Path(folder, f.target[-1])
                to.parent.mkdir(parents=True, exist_ok=True)
                if to.exists():
                    raise Invalid(f"{f.path} was written twice")
                shutil.move(f.spool, to)
            args = [command(), "dataset", "import", folder, name, "--json"]
            if self.client.socket is not None:
                args += ["--socket", self.client.socket]
            done = subprocess.run(args, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
            if done.returncode:
                raise from_wire(_EXITS.get(done.returncode), done.stderr.strip().removeprefix("ckpt: "))
            json.loads(done.stdout)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Files that one call writes are one set."""
        if self._intrans:
            yield
        else:
            with self.transaction:
                yield

    def put(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().put(*args, **kwargs)

    def pipe(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().pipe(*args, **kwargs)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        source: Any = self.open(path1, "rb")
        to: Any = self.open(path2, "wb")
        with source, to:
            shutil.copyfileobj(source, to, 4 << 20)

    def copy(self, *args: Any, **kwargs: Any) -> None:
        with self._together():
            super().copy(*args, **kwargs)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove a step with all its files (recursive=True), or the only file of one. A file that has others beside
        it stays: a set is whole or gone. Bytes go after the daemon's grace."""
        for p in [path] if isinstance(path, str) else path:
            p = _plain(p)
            node = self.find_node(p)
            if node.list is not None and not recursive:
                raise IsADirectoryError(f"{p} is a folder; recursive=True removes it")
            if "set" not in node.facts or p.startswith("datasets/"):
                raise Unauthorized(f"{p} cannot be removed from here", "a checkpoint's step can; `ckpt dataset rm` too")
            folder = p if node.list is not None else self._parent(p)
            if node.list is None and len(self.ls(folder)) > 1:
                raise Unauthorized(f"{p}: the files of a set go together", f"rm({folder!r}, recursive=True)")
            run, _, at = str(node.facts["set"]).rpartition("@")
            step = int(at.partition("#")[0])
            for s in self.client.list(run):
                if s.step == step:  # an older attempt would come to light
                    self.client.remove(s.id)

    def rm_file(self, path: str) -> None:
        self.rm(path)

    _rm = rm_file


def _plain(path: Any) -> str:
    """A path without the protocol and outer slashes."""
    return str(CkptdFileSystem._strip_protocol(path)).strip("/")


def _info(path: str, node: Node) -> dict[str, Any]:
    kind = "directory" if node.list is not None else "file"
    return {"name": path, "size": 0, "type": kind, **node.facts}


def _target(path: str) -> tuple[str, ...]:
    """Where a file is to be written: ("checkpoints", RUN, STEP, FILE) or ("datasets", NAME, PATH)."""
    parts = path.split("/")
    if parts[0] == "datasets" and NEXT in parts[2:-1]:
        at = parts.index(NEXT, 2)
        inside = parts[at + 1 :]
        if not any(p in ("", ".", "..") for p in inside):
            return "datasets", "/".join(parts[1:at]), "/".join(inside)
    elif parts[0] == "checkpoints" and len(parts) >= 4 and parts[-2].isdigit() and parts[-1] not in ("", MANIFEST):
        return "checkpoints", "/".join(parts[1:-2]), parts[-2], parts[-1]
    raise Invalid(
        f"{path}: nothing can be written there", f"checkpoints/RUN/STEP/FILE can, and datasets/NAME/{NEXT}/PATH"
    )


class _Reading(AbstractBufferedFile):
    """A file that is read. While it is open, a lease keeps its set from being pruned away."""

    def __init__(
        self, fs: CkptdFileSystem, path: str, node: Node, block_size: int | None, cache_options: Any, **kwargs: Any
    ) -> None:
        self._node = node
        self._lease: Checkpoint | None = None
        kwargs.pop("size", None)
        block: Any = block_size or 4 << 20
        super().__init__(fs, path, "rb", block, cache_options=cache_options, size=node.size, **kwargs)
        if "set" in node.facts:
            self._lease = Checkpoint(fs.client, node.facts["set"], check=True)
            self._lease.__enter__()

    def _fetch_range(self, start: int, end: int) -> bytes:
        assert self._node.read is not None
        return self._node.read(start, end)

    def close(self) -> None:
        if self._lease is not None:
            self._lease.__exit__()
            self._lease = None
        super().close()


class _Writing(io.RawIOBase):
    """A file that is being written, beside the daemon until it is committed."""

    def __init__(self, fs: CkptdFileSystem, path: str, target: tuple[str, ...], autocommit: bool) -> None:
        self.fs, self.path, self.target, self.autocommit = fs, path, target, autocommit
        fd, self.spool = tempfile.mkstemp(prefix="ckptd-fsspec-")
        self._f = os.fdopen(fd, "wb")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._f.write(data)

    def tell(self) -> int:
        return self._f.tell()

    def flush(self) -> None:
        if not self._f.closed:
            self._f.flush()

    def finish(self) -> None:
        """Every byte is in the spool."""
        self._f.close()
        super().close()

    def close(self) -> None:
        if self.closed:
            return
        self.finish()
        if self.autocommit:
            try:
                self.commit()
            finally:
                self.discard()

    def commit(self) -> None:
        self.fs.commit([self])

    def discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.spool)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: Any, e: Any, tb: Any) -> None:
        if e is None:
            self.close()
        else:  # half a file is none
            self.finish()
            self.discard()

    def __del__(self) -> None:  # never closed: not to be seen
        with contextlib.suppress(Error, AttributeError):
            if not self._f.closed:
                self.finish()
                self.discard()


fsspec.register_implementation("ckptd", CkptdFileSystem, clobber=True)
