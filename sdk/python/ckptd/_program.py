"""Where the programs are."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ._errors import Unavailable

NAME = "ckptd"


def command() -> Path:
    """`ckpt`, which lies beside the daemon's program."""
    path = daemon_program().with_name("ckpt")
    if os.access(path, os.X_OK):
        return path
    found = shutil.which("ckpt")
    if found:
        return Path(found).absolute()
    raise Unavailable(f"the program ckpt is not beside {path.with_name(NAME)} and not in PATH", "`make build` makes it")


def daemon_program() -> Path:
    """CKPTD_BIN; else what the wheel brought, or in a checkout what `make build` made; else the one in PATH."""
    named = os.environ.get("CKPTD_BIN")
    if named:
        if not os.access(named, os.X_OK) or os.path.isdir(named):
            raise Unavailable(f"CKPTD_BIN={named} is no program", "it names the daemon's program, as /usr/bin/ckptd")
        return Path(named).absolute()
    tried: list[str] = []
    for path in _own():
        if os.access(path, os.X_OK):
            return path
        tried.append(str(path))
    found = shutil.which(NAME)
    if found:
        return Path(found).absolute()
    raise Unavailable(
        f"the program {NAME} is not there; tried " + ", ".join([*tried, "PATH"]),
        "the wheel brings it (pip install ./sdk/python in a checkout, not -e), `make build` makes it in bin/, "
        "or name it with CKPTD_BIN",
    )


def _own() -> Iterator[Path]:
    """The places that belong to this very package."""
    here = Path(__file__).resolve().parent
    if len(here.parents) > 2 and (here.parents[2] / "go.mod").exists():  # sdk/python/ckptd of a checkout
        yield here.parents[2] / "bin" / NAME
        return
    try:
        files = importlib.metadata.distribution(NAME).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for f in files:
        if f.name == NAME and f.parent.name == "bin":
            yield Path(os.path.normpath(str(f.locate())))
    yield here.parent / "bin" / NAME  # pip install --target
