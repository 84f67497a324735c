"""What the daemon says of data sets and their versions, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .. import _api, _http
from .._kinds import dicts
from .._sets import time_of

if TYPE_CHECKING:
    from .._client import Client


@dataclass(frozen=True)
class Info:
    """One version of a data set, as `ckpt dataset ls` shows it."""

    ref: str  # NAME@3
    name: str
    version: int
    state: str  # writing, committed, aborted, pruned
    level: str  # of the least safe of its index and packs; none when one is missing
    digest: str = ""  # BLAKE3 of the content, hex
    files: int = 0
    bytes: int = 0  # of the files
    samples: int = 0
    packs: int = 0
    stored: int = 0  # bytes of its index and packs; other versions may share packs
    begun: datetime | None = None
    committed: datetime | None = None
    pinned: bool = False
    tags: dict[str, str] = field(default_factory=dict[str, str])
    reason: str = ""  # why it was aborted or pruned
    missing: tuple[str, ...] = ()  # packs that the catalog does not have; their files cannot be read
    err: str = ""  # why some of this is not known

    @classmethod
    def of(cls, obj: dict[str, Any]) -> Info:
        """From the daemon's JSON; what a newer daemon adds is left out."""
        known = {f.name: obj[f.name] for f in fields(cls) if obj.get(f.name) is not None}
        for name in ("begun", "committed"):
            known[name] = time_of(known.get(name))
        known["missing"] = tuple(known.get("missing", ()))
        return cls(**known)


def datasets(*, client: Client | None = None) -> list[Info]:
    """The newest version of every data set, by name."""
    answer = _http.call_json((client or _api.default()).paths, "GET", "/v1/datasets")
    return [Info.of(d["latest"]) for d in dicts(answer.get("datasets")) if d.get("latest")]


def versions(name: str, *, all: bool = False, client: Client | None = None) -> list[Info]:
    """The versions of a data set, newest first. all: those writing, aborted and pruned as well."""
    query = {"name": name, "all": all}
    answer = _http.call_json((client or _api.default()).paths, "GET", "/v1/dataset/versions", query=query)
    return [Info.of(v) for v in dicts(answer.get("versions"))]
