"""The exceptions of ckptd: one class a wire code, each also the builtin it means."""

from __future__ import annotations

import errno
from typing import Any


class Error(Exception):
    """Anything ckptd could not do. `code` is the wire's word for it, `hint` what to do next."""

    code = "internal"
    _errno: int | None = None

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if self._errno is not None and isinstance(self, OSError):
            self.errno = self._errno

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class Invalid(Error, ValueError):
    """The request can never work; the text says what to change."""

    code = "invalid"


class Unauthorized(Error, PermissionError):
    """The daemon belongs to another user."""

    code, _errno = "unauthorized", errno.EACCES


class NotFound(Error, FileNotFoundError):
    """No such run, set or tensor."""

    code, _errno = "not_found", errno.ENOENT


class Conflict(Error, FileExistsError):
    """Somebody else was first."""

    code, _errno = "conflict", errno.EEXIST


class Exists(Conflict):
    """The name is taken; committed sets never change."""

    code = "exists"


class Fenced(Conflict):
    """A newer attempt of the run has attached: this process is a leftover and must stop saving."""

    code = "fenced"


class Corrupt(Error, OSError):
    """No good copy of the bytes."""

    code, _errno = "corrupt", errno.EIO


class Incomplete(Error, TimeoutError):
    """The set is not yet at the level asked for."""

    code, _errno = "incomplete", errno.ETIMEDOUT


class Unavailable(Error, ConnectionError):
    """The daemon, its catalog or a node cannot be reached; trying again may help."""

    code, _errno = "unavailable", errno.ECONNREFUSED


class NoSpace(Error, OSError):
    """The bytes do not fit; the text says how much is short."""

    code, _errno = "no_space", errno.ENOSPC


class Internal(Error, RuntimeError):
    """The daemon failed in a way it has no word for."""


# The one table from the codes of PROTOCOL.md to exceptions.
CODES: dict[str, type[Error]] = {
    cls.code: cls
    for cls in (
        Invalid, Unauthorized, NotFound, Exists, Conflict, Fenced, Corrupt, Incomplete, Unavailable, NoSpace, Internal,
    )
}  # fmt: skip


def from_wire(code: object, message: object, hint: object = "") -> Error:
    """The exception for an error that came over the wire."""
    cls = CODES.get(str(code), Internal)
    return cls(str(message or code or "the daemon gave no reason"), str(hint or ""))
