"""A version of a data set written out by FORMAT.md, and a daemon's side of the messages that serve it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any


def up(n: int) -> int:
    return -(-n // 64) * 64


def write(folder: Path, packs: list[list[tuple[str, bytes]]], samples: list[list[int]]) -> None:
    """packs: their files (name, bytes), named so that all of them sort. samples: the numbers of their files from 0."""
    files, bodies = [], []
    for p, members in enumerate(packs):
        body = bytearray(64)
        for name, data in members:
            files.append((name, p, len(body), data))
            body += data.ljust(up(len(data)), b"\0")
        bodies.append(bytes(body))
        (folder / f"pack-{p}").write_bytes(body)
    assert [f[0] for f in files] == sorted(f[0] for f in files)
    entries = [struct.pack("<QQIIQQIHH", 1 << 56, 2**31 << 30, 0, 1, 0, len(files), 0, 0o755, 0)]
    names = b""
    for name, p, offset, data in files:
        n = name.encode()
        word = len(names) | len(n) << 48 | 2 << 56
        entries.append(struct.pack("<QQIIQQIHH", word, 2**31 << 30, 0, p, len(data), offset, 0, 0o644, 0))
        names += n
    runs = b"_packs/set"
    table, first = b"", 0
    for p, body in enumerate(bodies):
        count = sum(files[s[0]][1] == p for s in samples)
        table += struct.pack("<QIIQ32sQQII", 100 + p, 1, 1, len(body), bytes([p + 1] * 32), first, count, 0, len(runs))
        first += count
    width = len(samples[0])
    group = struct.pack("<QBBHIQQ", 0, 1, 1, width, 0, 0, 0)
    fields = b"".join(struct.pack("<I", f + 1) for s in samples for f in s)
    parts = [b"".join(entries), names, bytes(32 * len(entries)), bytes(4 * len(files)), table, runs, group, fields, b""]
    body, rows = b"", b""
    for i, part in enumerate(parts):
        body += b"\0" * (up(len(body)) - len(body))
        rows += struct.pack("<IIQQII", i + 1, 1, 4096 + len(body), len(part), 0, 0)
        body += part
    size = sum(len(f[3]) for f in files)
    facts = (4096 + len(body), len(entries), len(files), size, len(samples), len(packs))
    head = b"ckptINDX" + struct.pack("<II6Q", 1, 9, *facts)
    head = head.ljust(64, b"\0") + bytes(range(1, 33))
    head = head.ljust(128, b"\0") + rows
    (folder / "index").write_bytes(head.ljust(4096, b"\0") + body)


class Server:
    """Answers hello, dataset, pack, reader and load (PROTOCOL.md) for the version in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, str(folder / "s")
        self.complete = True  # whether packs are whole on this node
        self.asked: list[dict[str, Any]] = []
        self._listen = socket.socket(socket.AF_UNIX)
        self._listen.bind(self.path)
        self._listen.listen(64)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listen.shutdown(socket.SHUT_RDWR)
        self._listen.close()
        self.hang_up()
        for t in self._threads:
            t.join()

    def hang_up(self) -> None:
        for s in self._open:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                s, _ = self._listen.accept()
                self._open.append(s)
                self._threads.append(threading.Thread(target=self._serve, args=(s,)))
                self._threads[-1].start()

    def _serve(self, s: socket.socket) -> None:
        with s, contextlib.suppress(OSError, struct.error):
            assert s.recv(4) == b"CKP1"
            while True:
                head, fds, _, _ = socket.recv_fds(s, 8, 4)
                n, _ = struct.unpack("<II", head)
                msg = json.loads(s.recv(n, socket.MSG_WAITALL))
                self.asked.append(msg)
                answer, files = self._answer(msg, fds)
                body = json.dumps({**answer, "fds": len(files)}).encode()
                out = [os.open(f, os.O_RDONLY) for f in files]
                socket.send_fds(s, [struct.pack("<II", len(body), 0) + body], out)
                for fd in [*fds, *out]:
                    os.close(fd)

    def _answer(self, msg: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[Path]]:
        kind = msg["t"]
        if kind == "hello":
            return {"t": "welcome", "slot_size": 1 << 20, "node": "n1"}, []
        if kind == "dataset":
            if not msg["ref"].startswith("flowers"):
                return {"t": "error", "code": "not_found", "message": f"no data set {msg['ref']}"}, []
            index = self.folder / "index"
            return {"t": "dataset", "set": "_datasets/flowers@3#1", "version": 3, "size": index.stat().st_size}, [index]
        if kind == "pack":
            file = self.folder / f"pack-{msg['pack']}"
            whole = {"t": "pack", "pack": msg["pack"], "complete": self.complete}
            return whole, [file] if self.complete else []
        if kind == "load":
            pack = int(msg["set"].split("@")[1].split("#")[0]) - 100
            data = (self.folder / f"pack-{pack}").read_bytes()
            for off, n in msg["ranges"]:
                os.pwrite(fds[0], data[off : off + n], off - msg["off"])
            return {"t": "loaded", "from": "remote", "size": len(data)}, []
        return {"t": "reader"}, []
