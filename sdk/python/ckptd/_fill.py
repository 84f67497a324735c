"""Copying a shard into the daemon's slots: the whole of a save's stall.

The file is cut at multiples of the slot size. Each worker takes the next piece
and a free slot, copies the tensors that lie there (numpy releases the GIL for
that), and submits the slot. Whoever finds no free slot waits for the daemon's
next message, so a shard larger than the arena goes at the disk's pace.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque

from ._session import Frame, Lent, Message, Session
from ._tensors import Bytes, Source

PARALLEL_BYTES = 64 << 20  # a smaller shard is copied sooner than a second thread is awake


class Filler:
    """One shard on its way into one session's slots."""

    def __init__(
        self, session: Session, sources: list[Source], offsets: list[int], size: int, *, workers: int = 1
    ) -> None:
        self._s, self._sources, self._offsets, self._size = session, sources, offsets, size
        self._pieces = -(-size // session.slot_size)
        self._workers = min(workers, self._pieces) if size >= PARALLEL_BYTES else 1
        for s, lo in zip(sources, offsets, strict=True):
            s.pieces = 0 if s.size == 0 else (lo + s.size - 1) // session.slot_size - lo // session.slot_size + 1
        self._turn = threading.Condition()  # guards what follows
        self._next = 0
        self._free: deque[tuple[int, int, Bytes]] = deque()  # segment, slot, its memory
        self._memory: dict[int, Bytes] = {}
        self._out: set[tuple[int, int]] = set()  # taken and not yet free again
        self._reading = False
        self._error: BaseException | None = None
        self._sending = threading.Lock()
        for frame, lent in session.early:
            self._apply(frame, lent)
        session.early.clear()

    def run(self) -> None:
        """Copy and submit every byte; returns when the last slot was submitted."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._workers - 1)]
        for t in threads:
            t.start()
        self._work()
        for t in threads:
            t.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (job := self._take()) is not None:
                piece, (seg, slot, memory) = job
                lo = piece * self._s.slot_size
                hi = min(lo + self._s.slot_size, self._size)
                self._copy(memory, lo, hi)
                msg: Message = {"t": "slot", "seg": seg, "slot": slot, "off": lo, "len": hi - lo}
                with self._sending:
                    self._s.send(msg)
        except BaseException as e:
            with self._turn:
                self._error = self._error or e
                self._turn.notify_all()
            self._s.close()  # wakes a worker that waits for the daemon; nothing of the shard is left there

    def _take(self) -> tuple[int, tuple[int, int, Bytes]] | None:
        while True:
            with self._turn:
                while True:
                    if self._error is not None or self._next == self._pieces:
                        return None
                    # What the daemon has said is read before more is sent: its queue towards us must not fill up.
                    if not self._reading and (not self._free or self._s.readable()):
                        self._reading = True
                        break
                    if self._free:
                        self._next += 1
                        slot = self._free.popleft()
                        self._out.add(slot[:2])
                        return self._next - 1, slot
                    self._turn.wait()
            try:
                frame = self._s.recv()
                lent = self._s.lent(frame)
            except BaseException:
                with self._turn:
                    self._reading = False
                raise
            with self._turn:
                self._reading = False
                self._apply(frame, lent)
                self._turn.notify_all()

    def _apply(self, frame: Frame, lent: list[Lent]) -> None:
        size = self._s.slot_size
        for seg, slots, memory in lent:
            self._memory[seg] = memory
            self._free.extend((seg, i, memory[i * size : (i + 1) * size]) for i in range(slots))
        if frame.msg.get("t") == "free":
            seg, i = int(frame.msg.get("seg", 0)), int(frame.msg.get("slot", 0))
            if (seg, i) in self._out:  # else of the save before, whose last slots were written after its seal
                self._out.discard((seg, i))
                self._free.append((seg, i, self._memory[seg][i * size : (i + 1) * size]))

    def _copy(self, memory: Bytes, lo: int, hi: int) -> None:
        """Copy the bytes [lo, hi) of the file that are tensors'. The header's the daemon puts there itself."""
        i = max(bisect.bisect_right(self._offsets, lo) - 1, 0)
        while i < len(self._offsets) and self._offsets[i] < hi:
            at, s = self._offsets[i], self._sources[i]
            a, b = max(lo, at), min(hi, at + s.size)
            if a < b:
                memory[a - lo : b - lo] = s.bytes()[a - at : b - at]
                s.copied()
            i += 1
