"""The tree that `ckpt mount` shows, for who has no mount: what is at a path, and what is in it.

    checkpoints/RUN/STEP/FILE       a shard, by its own name; STEP-ATTEMPT for one attempt's, `latest` for the newest
    checkpoints/RUN/STEP/.manifest.json   the committed list of shards and tensors; not listed
    datasets/NAME/VERSION/PATH      a file of a version; `latest` for the newest

`latest`, and in a version a link to a folder, is found and not listed, so that nobody who walks the tree meets the
same files twice.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ._client import Client
from ._errors import Incomplete, Invalid, NotFound
from ._files import read_shard
from ._kinds import dicts
from ._sets import time_of
from .data._index import FILE, FOLDER, Field, Index
from .data._list import datasets
from .data._version import Version

MAX_VERSIONS = 4  # kept open, each with its lease
MAX_LINKS = 40  # followed from one path
MANIFEST = ".manifest.json"
_STEP = re.compile(r"(\d{1,18})(?:-(\d{1,9}))?\Z")
_ABSENT = (NotFound, Incomplete, Invalid)  # a path may be no reference at all

Children = Iterable[tuple[str, "Node"]]


@dataclass(frozen=True)
class Node:
    """What is at a path. facts: for fsspec's info."""

    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    list: Callable[[], Children] | None = None  # of a folder
    read: Callable[[int, int], bytes] | None = None  # of a file: its bytes from start to stop

    @property
    def size(self) -> int:
        return int(self.facts.get("size") or 0)


class Places:
    """The tree as one daemon has it. Nothing is kept but versions of data sets, which never change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the versions
        self._versions: OrderedDict[tuple[str, ...], Version] = OrderedDict()  # the least recently used first

    def find(self, client: Client, path: str) -> Node:
        """What is at a path; NotFound."""
        parts = [p for p in path.split("/") if p]
        if not parts:
            top = {"checkpoints": "", "datasets": ""}
            return Node(list=lambda: [(name, self.find(client, name)) for name in top])
        found = None
        if parts[0] == "checkpoints":
            found = self._checkpoint(client, parts[1:])
        elif parts[0] == "datasets":
            found = self._dataset(client, parts[1:])
        if found is None:
            raise NotFound(f"nothing is at {path}", "checkpoints/RUN/STEP/FILE and datasets/NAME/VERSION/PATH are")
        return found

    # --- checkpoints ---

    def _checkpoint(self, client: Client, parts: list[str]) -> Node | None:
        for split in (len(parts) - 1, len(parts) - 2):
            if split < 1:
                continue
            ref = ref_of("/".join(parts[:split]), parts[split])
            node = ref and self._set(client, ref)
            if not node:
                continue
            rest = parts[split + 1 :]
            if not rest:
                return node
            if rest[0] == MANIFEST:
                return _manifest(client, ref)
            return dict(node.list() if node.list else ()).get(rest[0])
        run = "/".join(parts)
        runs = client.runs()
        inside = below(run, runs)
        if run and not inside and run not in runs:
            return None

        def children() -> Children:
            for name in inside:
                yield name, Node(list=lambda: ())
            seen: set[int] = set()
            for s in client.list(run) if run in runs else ():
                if s.step not in seen and str(s.step) not in inside:  # of several attempts the newest comes first
                    seen.add(s.step)
                    yield str(s.step), Node(_set_facts(s.id, s.committed, s.level, s.tags), list=lambda: ())

        return Node(list=children)

    def _set(self, client: Client, ref: str) -> Node | None:
        client.settle(ref)
        try:
            detail = client.detail(ref)
        except _ABSENT:
            return None
        if detail.get("state") != "committed":
            return None
        set_id, made = str(detail["id"]), time_of(detail.get("committed"))
        files: dict[str, Node] = {}
        for s in dicts(detail.get("shards")):
            rank, size = int(s["rank"]), int(s["size"])
            name = str(s["file"]) if s.get("raw") else f"rank-{rank:05d}.safetensors"
            while name in files or name == MANIFEST:  # as the mount does
                name = f"rank-{rank:05d}.{name}"
            facts = {"size": size, "created": made, "set": set_id, "rank": rank, "level": s.get("level"),
                     "hash": s.get("root")}  # fmt: skip
            files[name] = Node(facts, read=_shard_reader(client, set_id, rank))
        return Node(_set_facts(set_id, made, detail.get("level"), detail.get("tags") or {}), list=files.items)

    # --- data sets ---

    def _dataset(self, client: Client, parts: list[str]) -> Node | None:
        for split in range(1, len(parts)):
            step = parts[split]
            if step != "latest" and not step.isdigit():
                continue
            version = self._version(client, "/".join(parts[:split]), step)
            if version is not None:
                i = follow(version.index, "/".join(parts[split + 1 :]))
                return None if i is None else _entry(version, i)
        name = "/".join(parts)
        names = [d.name for d in datasets(client=client)]
        inside = below(name, names)
        if name and not inside and name not in names:
            return None

        def children() -> Children:
            for n in inside:
                yield n, Node(list=lambda: ())
            for s in client.list(f"_datasets/{name}") if name in names else ():
                yield str(s.step), Node({"created": s.committed, "set": s.id, "level": s.level}, list=lambda: ())

        return Node(list=children)

    def _version(self, client: Client, name: str, step: str) -> Version | None:
        key = (*client.paths, f"{name}@{step}")
        with self._lock:
            kept = self._versions.get(key)
            if kept is not None:
                self._versions.move_to_end(key)
                return kept
        try:
            version = Version(client, f"{name}@{step}")
        except _ABSENT:
            return None
        if step == "latest":  # another one tomorrow
            return version
        with self._lock:
            self._versions[key] = version
            while len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)  # its connection ends when no open file has it any more
        return version


def _set_facts(set_id: str, made: datetime | None, level: Any, tags: Any) -> dict[str, Any]:
    return {"created": made, "set": set_id, "level": level, "tags": tags}


def ref_of(run: str, step: str) -> str:
    """RUN@STEP[#ATTEMPT] of a folder's name; empty when it is no step's."""
    if step == "latest":
        return f"{run}@latest"
    m = _STEP.match(step)
    return "" if m is None else f"{run}@{int(m[1])}" + (f"#{int(m[2])}" if m[2] else "")


def below(prefix: str, names: Iterable[str]) -> list[str]:
    """The folders right below a prefix that lead to some of these names."""
    start = f"{prefix}/" if prefix else ""
    return sorted({n[len(start) :].split("/")[0] for n in names if n.startswith(start)})


def _manifest(client: Client, ref: str) -> Node | None:
    try:
        raw = json.dumps(client.manifest(ref)).encode()
    except _ABSENT:
        return None
    return Node({"size": len(raw)}, read=lambda a, b: raw[a:b])


def _shard_reader(client: Client, set_id: str, rank: int) -> Callable[[int, int], bytes]:
    return lambda start, stop: read_shard(client, set_id, rank, start, stop)


def follow(index: Index, path: str) -> int | None:
    """The entry at a path of a version, through its links; None when there is none, or a link leads outside."""
    todo = [p for p in path.encode("utf-8", "surrogateescape").split(b"/") if p]
    at, links = [0], 0  # the entries from the root to where we are
    while todo:
        name = todo.pop(0)
        if name in (b".", b""):
            continue
        if name == b"..":
            if len(at) == 1:
                return None
            at.pop()
            continue
        if index.kind(at[-1]) != FOLDER:
            return None
        i = index.child(at[-1], name)
        if i is None:
            return None
        if index.kind(i) in (FOLDER, FILE):
            at.append(i)
            continue
        links += 1
        target = index.target(i)
        if links > MAX_LINKS or target.startswith(b"/"):
            return None
        todo = target.split(b"/") + todo
    return at[-1]


def _entry(version: Version, i: int) -> Node:
    """A folder or file of a version. A link to a file is that file. Any other is not listed: one to a folder is found
    by its name, and one that leads nowhere, or outside, is nothing that could be read."""
    index = version.index
    made = datetime.fromtimestamp(index.mtime(i), timezone.utc)
    if index.kind(i) == FILE:
        f = index.file(i)
        facts = {"size": f.size, "mtime": made.timestamp(), "created": made, "hash": index.hash(i).hex()}

        def read(start: int, stop: int) -> bytes:
            if stop <= start:
                return b""
            return version.read([Field(i, f.pack, f.offset + start, stop - start)])[0].tobytes()

        return Node(facts, read=read)

    def children() -> Children:
        for k in index.children(i):
            name = index.name(k).decode("utf-8", "surrogateescape")
            if index.kind(k) in (FOLDER, FILE):
                yield name, _entry(version, k)
                continue
            target = index.target(k).decode("utf-8", "surrogateescape")
            to = follow(index, f"{index.path(i).decode('utf-8', 'surrogateescape')}/{name}")
            link = {"islink": True, "destination": target}
            if to is not None and index.kind(to) == FILE:
                node = _entry(version, to)
                yield name, Node({**node.facts, **link}, read=node.read)

    return Node({"mtime": made.timestamp(), "created": made, "version": version.ref}, list=children)
