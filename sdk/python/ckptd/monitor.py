"""How training reads its data: start, train, stop, print.

    with ckptd.monitor.watch() as m:
        train()
    print(m)                 # a table
    print(m.prometheus())    # for a scrape file

Counted are the reads of ckptd.data in this process, and those of its loaders' workers; the time for which the training
loop waited is that of loaders. A read costs it about a microsecond.
"""

from __future__ import annotations

import bisect
import threading
import time
from dataclasses import dataclass, field
from typing import Any

SOURCES = ("local", "peer", "remote")
# Bounds of the latencies' buckets in seconds: 1 µs to 100 s, a quarter more each.
BOUNDS = [1e-6 * 1.25**i for i in range(84)]

Event = tuple[str, int, float]  # source, bytes, seconds

_lock = threading.Lock()  # guards _watching and the numbers of each
_watching: list[Monitor] = []


@dataclass
class Source:
    """Reads from one place."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, size: int, seconds: float) -> None:
        """Count one read."""
        self.reads += 1
        self.bytes += size
        self.seconds += seconds
        self.buckets[bisect.bisect_left(BOUNDS, seconds)] += 1

    def quantile(self, q: float) -> float:
        """Seconds that a share q of the reads stayed within, up to a quarter more."""
        need = q * self.reads
        seen = 0
        for i, n in enumerate(self.buckets):
            seen += n
            if seen >= need and n:
                return BOUNDS[min(i, len(BOUNDS) - 1)]
        return 0.0


class Monitor:
    """What was read between start and stop. May be printed while it runs."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {s: Source() for s in SOURCES}
        self.stalled = 0.0  # seconds the training loop waited for data
        self._begun: float | None = None
        self._spent = 0.0

    def start(self) -> Monitor:
        """Count from now on; after stop, go on counting."""
        with _lock:
            if self._begun is None:
                self._begun = time.perf_counter()
                _watching.append(self)
        return self

    def stop(self) -> Monitor:
        """Count no further."""
        with _lock:
            if self._begun is not None:
                self._spent += time.perf_counter() - self._begun
                self._begun = None
                _watching.remove(self)
        return self

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """Wall time between start and stop."""
        return self._spent + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    def summary(self) -> dict[str, Any]:
        """The figures: bytes, MB/s, latencies in ms, hit rate and stall share (0 to 1), and the same per source."""
        with _lock:
            total = Source()
            for s in self.sources.values():
                total.reads += s.reads
                total.bytes += s.bytes
                total.seconds += s.seconds
                total.buckets = [a + b for a, b in zip(total.buckets, s.buckets, strict=True)]
            wall = self.seconds
            return {
                "seconds": wall,
                "stall_share": min(1.0, self.stalled / wall) if wall else 0.0,
                "hit_rate": self.sources["local"].bytes / total.bytes if total.bytes else 0.0,
                **_figures(total, wall),
                "sources": {name: _figures(s, wall) for name, s in self.sources.items()},
            }

    def __str__(self) -> str:
        s = self.summary()
        rows = [("total", s), *s["sources"].items()]
        lines = [f"{'':8} {'reads':>9} {'MB':>10} {'MB/s':>9} {'mean ms':>9} {'p50 ms':>9} {'p99 ms':>9}"]
        lines += [
            f"{name:8} {r['reads']:9d} {r['bytes'] / 1e6:10.1f} {r['mb_per_s']:9.1f} {r['mean_ms']:9.3f}"
            f" {r['p50_ms']:9.3f} {r['p99_ms']:9.3f}"
            for name, r in rows
        ]
        lines.append(
            f"{s['seconds']:.1f} s; {100 * s['hit_rate']:.1f} % of the bytes from this node;"
            f" the loop waited for data {100 * s['stall_share']:.1f} % of the time"
        )
        return "\n".join(lines)

    def prometheus(self) -> str:
        """The same in Prometheus' text format."""
        s = self.summary()
        lines: list[str] = []
        for name, kind, key in (
            ("reads_total", "counter", "reads"), ("read_bytes_total", "counter", "bytes"),
            ("read_seconds_total", "counter", "seconds_in_reads"),
        ):  # fmt: skip
            lines.append(f"# TYPE ckptd_data_{name} {kind}")
            lines += [f'ckptd_data_{name}{{source="{src}"}} {s["sources"][src][key]}' for src in SOURCES]
        for name, kind, v in (
            ("stall_seconds_total", "counter", self.stalled), ("wall_seconds_total", "counter", s["seconds"]),
            ("hit_ratio", "gauge", s["hit_rate"]),
        ):  # fmt: skip
            lines += [f"# TYPE ckptd_data_{name} {kind}", f"ckptd_data_{name} {v}"]
        return "\n".join(lines) + "\n"


def _figures(s: Source, wall: float) -> dict[str, Any]:
    return {
        "reads": s.reads,
        "bytes": s.bytes,
        "seconds_in_reads": s.seconds,
        "mb_per_s": s.bytes / 1e6 / wall if wall else 0.0,
        "mean_ms": 1e3 * s.seconds / s.reads if s.reads else 0.0,
        "p50_ms": 1e3 * s.quantile(0.50),
        "p99_ms": 1e3 * s.quantile(0.99),
    }


def watch() -> Monitor:
    """A monitor, to be used as a context manager or with start and stop."""
    return Monitor()


def record(source: str, size: int, seconds: float) -> None:
    """Count one read of `size` bytes from a source."""
    if not _watching:
        return
    with _lock:
        for m in _watching:
            m.sources.setdefault(source if source in SOURCES else "remote", Source()).add(size, seconds)


def waited(seconds: float) -> None:
    """Count a wait of the training loop."""
    if not _watching:
        return
    with _lock:
        for m in _watching:
            m.stalled += seconds


class Collect:
    """The reads of this process in a block, as a list: how a worker tells them to the loader's process."""

    def __init__(self) -> None:
        self._m = Monitor()

    def __enter__(self) -> Collect:
        self._m.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._m.stop()

    def events(self) -> list[Event]:
        """(source, bytes, seconds), one a source that was read."""
        return [(n, s.bytes, s.seconds) for n, s in self._m.sources.items() if s.reads]
