"""What the daemon says of sets, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

LEVELS = ("none", "staged", "local", "replicated", "remote", "verified")
"""The ladder, from less to more safe."""


@dataclass(frozen=True)
class Set:
    """One checkpoint: all shards of one step, visible as a whole or not at all."""

    ref: str  # RUN@STEP
    id: str  # RUN@STEP#ATTEMPT
    run: str
    step: int
    attempt: int
    state: str  # writing, committed, aborted, pruned
    level: str  # one of LEVELS
    world: int  # ranks
    size: int  # bytes of all shards
    begun: datetime | None = None
    committed: datetime | None = None
    pinned: bool = False
    tags: dict[str, str] = field(default_factory=dict[str, str])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    manifest: str = ""  # SHA-256 of the manifest, hex
    reason: str = ""  # why it was aborted or pruned

    @classmethod
    def of(cls, obj: dict[str, Any]) -> Set:
        """From the daemon's JSON; what a newer daemon adds is left out."""
        known = {f.name: obj[f.name] for f in fields(cls) if obj.get(f.name) is not None}
        for name in ("begun", "committed"):
            known[name] = time_of(known.get(name))
        return cls(**known)

    def reached(self, level: str) -> bool:
        """Whether the set is at this level or safer."""
        return self.state == "committed" and LEVELS.index(self.level) >= LEVELS.index(level)


def time_of(text: Any) -> datetime | None:
    """RFC 3339 as Go prints it (nanoseconds, Z), to microseconds; None for Go's zero time."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    text = re.sub(r"\.(\d+)", lambda m: "." + m[1][:6].ljust(6, "0"), text)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
