"""One session with the daemon: frames, descriptors, and the shared memory it lent (PROTOCOL.md)."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._errors import Error, Unavailable, from_wire
from ._http import dial
from ._kinds import dicts, is_dict
from ._tensors import Bytes

MAGIC = b"CKP1"
VERSION = 1
CLIENT = "python/0.1"
MAX_JSON = 1 << 20
MAX_PAYLOAD = (100 << 20) + 8 + 4096
MAX_FDS = 64
HELLO_SECONDS = 10.0

Message = dict[str, Any]
Lent = tuple[int, int, Bytes]  # a segment's id, its number of slots, its memory


@dataclass
class Frame:
    """One message with what came beside it. The descriptors are the receiver's to close."""

    msg: Message
    payload: bytes
    fds: list[int]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Session:
    """A connection that carries one save or load at a time. Any error but a refusal closes it."""

    def __init__(self, paths: list[str]) -> None:
        self.pid = os.getpid()
        self.segments: dict[tuple[int, int], Bytes] = {}  # (id, gen) -> mapped, kept for the next save
        self.early: list[tuple[Frame, list[Lent]]] = []  # lent while an answer was awaited
        self._sock, self.path = dial(paths)
        try:
            self._sock.settimeout(HELLO_SECONDS)
            self._sock.sendall(MAGIC)
            welcome = self.ask({"t": "hello", "version": VERSION, "client": CLIENT}, "welcome").msg
            self._sock.settimeout(None)
        except BaseException:
            self.close()
            raise
        self.slot_size = int(welcome["slot_size"])
        self.max_header = int(welcome.get("max_header", MAX_PAYLOAD))
        self.node = str(welcome.get("node", ""))

    def close(self) -> None:
        """Hang up. What was not sealed is gone; a lease ends."""
        if self.pid == os.getpid():  # a forked child lets go of its copy and leaves the parent's connection alone
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.segments.clear()
        self.early.clear()

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_sock") and not ending():  # at the interpreter's end the kernel hangs up
            self.close()

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def stale(self) -> bool:
        """Whether the daemon hung up meanwhile. Slots of the last save may still be freed after its seal."""
        if self.closed or self.pid != os.getpid():
            return True
        try:
            while self.readable():
                frame = self.recv()
                self.lent(frame)
                if frame.msg.get("t") not in ("free", "lend"):
                    return True
        except Error:  # gone, or it said why it is going
            return True
        return False

    def readable(self) -> bool:
        p = select.poll()
        p.register(self._sock, select.POLLIN)
        return bool(p.poll(0))

    def send(self, msg: Message, payload: Bytes | bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one frame; the descriptors stay the caller's."""
        if fds:
            msg = {**msg, "fds": len(fds)}
        body = json.dumps(msg, separators=(",", ":")).encode()
        head = struct.pack("<II", len(body), len(payload)) + body
        try:
            if fds:
                sent = socket.send_fds(self._sock, [head], list(fds))
                head = head[sent:]
            if len(payload) > 1 << 16:
                self._sock.sendall(head)
                self._sock.sendall(payload)
            else:
                self._sock.sendall(head + bytes(payload))
        except OSError as e:
            self.close()
            raise _gone(f"sending {msg['t']}", e) from e

    def recv(self) -> Frame:
        """Receive one frame; an `error` message is raised."""
        fds: list[int] = []
        try:
            head = b""
            while len(head) < 8:
                more, got = self._recv_head(8 - len(head))
                fds += got
                if not more:
                    raise ConnectionResetError("the daemon closed the connection")
                head += more
            n, p = struct.unpack("<II", head)
            if n > MAX_JSON or p > MAX_PAYLOAD or len(fds) > MAX_FDS:
                raise ConnectionAbortedError(f"a frame of {n}+{p} bytes is beyond the protocol's limits")
            msg = json.loads(self._exactly(n))
            if not is_dict(msg):
                raise ConnectionAbortedError("a frame that is no JSON object")
            frame = Frame(msg, bytes(self._exactly(p)), fds)
        except (OSError, ValueError) as e:
            for fd in fds:
                os.close(fd)
            self.close()
            raise _gone("waiting for the daemon", e) from e
        except BaseException:  # a signal in the middle of a frame: its rest would be read as the next one
            for fd in fds:
                os.close(fd)
            self.close()
            raise
        if msg.get("t") == "error":
            frame.close()
            raise from_wire(msg.get("code"), msg.get("message"), msg.get("hint", ""))
        return frame

    def _recv_head(self, n: int) -> tuple[bytes, list[int]]:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        data, ancillary, flags, _ = self._sock.recvmsg(n, space, socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ConnectionAbortedError("descriptors were lost (is the limit of open files reached?)")
        return data, fds

    def _exactly(self, n: int) -> bytearray:
        buf = bytearray(n)
        view = memoryview(buf)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise ConnectionResetError("the daemon closed the connection in a frame")
            view = view[got:]
        return buf

    def ask(self, msg: Message, answer: str, payload: Bytes | bytes = b"", fds: Sequence[int] = ()) -> Frame:
        """Send a request and wait for its answer."""
        self.send(msg, payload, fds)
        frame = self.recv()
        while frame.msg.get("t") in ("lend", "free"):
            self.early.append((frame, self.lent(frame)))
            frame = self.recv()
        if frame.msg.get("t") != answer:
            frame.close()
            self.close()
            raise _gone(f"asking for {answer}", f"the daemon answered {frame.msg.get('t')!r}")
        return frame

    def seal(self) -> None:
        """Say that every byte was submitted, and wait until the daemon has said that they will survive."""
        self.send({"t": "seal"})
        while True:
            frame = self.recv()
            self.lent(frame)  # a late lend counts as held from now on
            if frame.msg.get("t") == "sealed":
                return

    def lent(self, frame: Frame) -> list[Lent]:
        """Map what a lend message brought, and nothing for any other. Takes the frame's descriptors."""
        try:
            out: list[Lent] = []
            fds = iter(frame.fds)
            for seg in dicts(frame.msg.get("segments")):
                key = (int(seg.get("id", 0)), int(seg.get("gen", 0)))
                size = int(seg["size"])
                if not seg.get("held"):
                    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                    self.segments[key] = np.frombuffer(mmap.mmap(next(fds), size, flags=flags), np.uint8)
                out.append((key[0], size // self.slot_size, self.segments[key]))
            return out
        except (KeyError, StopIteration, OSError, ValueError) as e:
            self.close()
            raise _gone("mapping what the daemon lent", e) from e
        finally:
            frame.close()


def _gone(doing: str, why: object) -> Error:
    if isinstance(why, Error):
        return why
    return Unavailable(
        f"{doing}: {why}", "the daemon may be restarting; what was sealed is safe, anything else must be saved again"
    )
