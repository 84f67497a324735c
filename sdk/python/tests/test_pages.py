"""The pages of docs/: their code runs, block after block, as it stands (fsspec's in test_fsspec.py, where the
protocol is registered as an installed package has it)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Daemon

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md") if p.stem != "fsspec"))
def test_the_code_of_a_page_runs(page: str, own_daemon: Daemon, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "page.py").write_text("\n".join(blocks))
    got = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "CKPTD_SOCKET": str(own_daemon.socket), "PYTHONPATH": str(DOCS.parent)},
    )  # fmt: skip
    assert got.returncode == 0, got.stdout[-6000:]
    assert "Traceback" not in got.stdout, got.stdout[-6000:]
