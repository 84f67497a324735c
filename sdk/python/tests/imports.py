"""Data sets that tests import by the command, as a user would."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from conftest import Daemon, binary


def load(daemon: Daemon, source: Path, name: str, *flags: str) -> dict[str, Any]:
    """Import with the command beside the daemon's program."""
    program = binary().with_name("ckpt")
    args = [program, "--socket", daemon.socket, "--json", "dataset", "import", source, name, *flags]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    """samples: by key, their fields by extension."""
    with tarfile.open(path, "w") as tar:
        for key, fields in samples.items():
            for ext, data in fields.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
