"""The half of the protocol that looks and acts: JSON over HTTP on the unix socket."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import struct
from typing import Any
from urllib.parse import urlencode

from ._errors import Error, Unavailable, from_wire

CONNECT_SECONDS = 10.0


def candidates() -> list[str]:
    """Where the daemon's socket may be, in the order to try."""
    env = os.environ.get("CKPTD_SOCKET")
    if env:
        return [env]
    run = os.environ.get("XDG_RUNTIME_DIR")
    own = f"{run}/ckptd/ckptd.sock" if run else f"/tmp/ckptd-{os.getuid()}/ckptd.sock"
    return [own, "/run/ckptd/ckptd.sock"]


def dial(paths: list[str]) -> tuple[socket.socket, str]:
    """Connect to the first of these sockets where somebody listens."""
    tried: list[str] = []
    for path in paths:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(CONNECT_SECONDS)
        try:
            s.connect(path)
            if path.startswith("/tmp/") and _peer(s) not in (os.getuid(), 0):
                raise PermissionError(errno.EACCES, "another user listens there")  # anyone may make names in /tmp
            return s, path
        except OSError as e:
            s.close()
            tried.append(f"{path} ({e.strerror or e})")
    raise Unavailable(
        "no ckptd daemon answers; tried " + ", ".join(tried),
        "start one with `ckptd serve`, or name its socket with CKPTD_SOCKET or ckptd.connect(socket=...)",
    )


def _peer(s: socket.socket) -> int:
    """The user at the other end."""
    return struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]


class _Connection(http.client.HTTPConnection):
    def __init__(self, paths: list[str], timeout: float | None) -> None:
        super().__init__("ckptd", timeout=timeout)
        self._paths = paths

    def connect(self) -> None:
        self.sock, _ = dial(self._paths)
        self.sock.settimeout(self.timeout)


def call(
    paths: list[str], method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None,
    timeout: float | None = 120.0,
) -> tuple[bytes, http.client.HTTPMessage]:  # fmt: skip
    """One request; an answer that is not 2xx is raised as the exception of its code."""
    if query:
        path += "?" + urlencode({k: str(v).lower() if isinstance(v, bool) else v for k, v in query.items()})
    conn = _Connection(paths, timeout)
    try:
        data = None if body is None else json.dumps(body)
        conn.request(method, path, data, {"Content-Type": "application/json", "Connection": "close"})
        reply = conn.getresponse()
        raw = reply.read()
    except (http.client.HTTPException, OSError) as e:
        if isinstance(e, Unavailable):
            raise
        raise Unavailable(f"{method} {path}: {e or type(e).__name__}", "is the daemon restarting? try again") from e
    finally:
        conn.close()
    if 200 <= reply.status < 300:
        return raw, reply.headers
    raise _refusal(raw, f"{method} {path}: HTTP {reply.status}")


def _refusal(raw: bytes, what: str) -> Error:
    try:
        err = json.loads(raw)["error"]
        return from_wire(err["code"], err["message"], err.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):  # not the daemon's own words
        return from_wire("internal", f"{what} {raw[:200].decode('utf-8', 'replace')}")


def call_json(paths: list[str], method: str, path: str, **kw: Any) -> Any:
    """The same, where the answer is JSON."""
    raw, _ = call(paths, method, path, **kw)
    return json.loads(raw)
