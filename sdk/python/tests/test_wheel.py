"""The wheel as its users meet it: built, installed into an empty environment with numpy, and used as in a notebook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import ckptd

SDK = ROOT / "sdk" / "python"
LIMIT = 600.0  # seconds for one command: Go may have to compile everything first
DOWNLOADS = (
    "ConnectionError", "NewConnectionError", "Max retries", "No matching distribution", "Could not find a version",
    "Could not fetch", "Temporary failure", "ReadTimeout", "HTTP error", "proxy.golang.org", "dial tcp",
)  # fmt: skip

# A cell runs within the kernel's event loop, may await at its top level, and shares its names with the next.
NOTEBOOK = """
import ast, asyncio, inspect, json, sys

async def kernel(cells):
    names = {"__name__": "__main__"}
    for n, cell in enumerate(cells, 1):
        code = compile(cell, f"<cell {n}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, names)
        if inspect.iscoroutine(waiting):
            await waiting
    return names

names = asyncio.run(kernel(json.load(sys.stdin)))
import ckptd, numpy
assert names["daemon"].closed
assert numpy.array_equal(names["state"]["w"], numpy.ones((784, 10), numpy.float32))
print(ckptd.__file__)
"""


def run(
    command: list[str | Path], *, env: dict[str, str] | None = None, cwd: Path | None = None, stdin: str = ""
) -> str:
    """What a command prints; a download that failed is called one."""
    try:
        done = subprocess.run(
            command, env=env, cwd=cwd, input=stdin, text=True, capture_output=True, timeout=LIMIT, errors="replace"
        )
    except subprocess.TimeoutExpired as e:
        pytest.fail(f"{command}: not done after {LIMIT:g} s:\n{e.stderr}", pytrace=False)
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode:
        why = ""
        if any(word in said for word in DOWNLOADS):
            why = "A download failed. This needs PyPI (or a mirror: pip config set global.index-url URL),\n"
            why += "for hatchling and numpy, and Go's modules in the module cache or from a proxy (GOPROXY).\n"
        pytest.fail(f"{why}{' '.join(map(str, command))}: exit code {done.returncode}\n{said}", pytrace=False)
    return done.stdout


def pip(*args: str | Path, **kw: object) -> str:
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *args], **kw)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip wheel ./sdk/python`, with the build environment that pip makes for it."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-q", "--no-deps", "-w", out, SDK)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked where no checkout is near."""
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", f"import hatchling.build as b; b.build_sdist({str(out)!r})"], cwd=SDK)
    (packed,) = out.iterdir()
    with tarfile.open(packed) as t:
        t.extractall(out, filter="data") if sys.version_info >= (3, 12) else t.extractall(out)
    return out / f"ckptd-{ckptd.__version__}"


def hook(sdist: Path, into: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A wheel of the sdist, as a build frontend asks for it."""
    env = {**os.environ, **variables}
    code = f"import hatchling.build as b; print(b.build_wheel({str(into)!r}))"
    command = [sys.executable, "-c", code]
    both = subprocess.STDOUT
    return subprocess.run(command, cwd=sdist, env=env, stdout=subprocess.PIPE, stderr=both, text=True, timeout=LIMIT)


def test_wheel_holds_what_it_says(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    machine = sysconfig.get_platform().split("-")[-1]
    assert (name, version, python, abi) == ("ckptd", ckptd.__version__, "py3", "none")
    assert platform.split(".")[0] == f"manylinux_2_17_{machine}"
    with zipfile.ZipFile(wheel) as z:
        files = {i.filename: i for i in z.infolist()}
        for program in ("ckptd", "ckpt"):
            info = files.pop(f"ckptd-{version}.data/scripts/{program}")
            assert info.file_size > 1 << 20
            assert info.external_attr >> 16 & 0o111 == 0o111, f"{program} is not executable"
        third = z.read(f"ckptd-{version}.dist-info/licenses/THIRD_PARTY.txt").decode()
        metadata = z.read(f"ckptd-{version}.dist-info/METADATA").decode()
        entries = z.read(f"ckptd-{version}.dist-info/entry_points.txt").decode()
    for module in ("The Go standard library", "github.com/nats-io/nats-server/v2", "github.com/hanwen/go-fuse/v2"):
        assert f"\n{module} " in third
    assert "(no license file)" not in third
    assert "ckptd = ckptd.fsspec.CkptdFileSystem" in entries
    assert {"ckptd/py.typed", "ckptd/data/__init__.py", "ckptd/torch/__init__.py"} <= set(files)
    assert f"ckptd-{version}.dist-info/licenses/LICENSE" in files
    assert (SDK / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for extra in ("torch", "jax", "fsspec", "lightning", "transformers"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert {f.split("/")[0] for f in files} == {"ckptd", f"ckptd-{version}.dist-info"}


def test_notebook_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Must hold with numpy and nothing else: no Go, no daemon that runs already, no checkout in sight."""
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    python = venv / "bin" / "python"
    pip("--python", python, "install", "-q", wheel)
    listed = json.loads(pip("--python", python, "list", "--format", "json"))
    assert {d["name"] for d in listed} == {"ckptd", "numpy"}
    env = {"HOME": str(tmp_path), "PATH": f"{venv / 'bin'}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    for program in ("ckptd", "ckpt"):
        assert run([venv / "bin" / program, "--version"], env=env).startswith(program)
    readme = (SDK / "README.md").read_text()
    section = readme.split("## In tests and notebooks\n")[1].split("\n## ")[0]
    cells = [b for b in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if "pytest" not in b]
    assert len(cells) == 4
    before = leavings()
    for path in (env["PATH"], "/usr/bin:/bin"):  # a notebook's kernel has no environment's bin in its PATH
        (tmp_path / "checkpoints").exists() and shutil.rmtree(tmp_path / "checkpoints")
        said = run([python, "-I", "-c", NOTEBOOK], env={**env, "PATH": path}, cwd=tmp_path, stdin=json.dumps(cells))
        assert "3 (784, 10)" in said
        assert said.splitlines()[-1].startswith(str(venv))
    assert leavings() <= before


def leavings() -> set[str]:
    name = f"ckptd-local-{os.getuid()}-*"
    return {str(p) for d in ("/tmp", "/dev/shm") if os.path.isdir(d) for p in Path(d).glob(name)}


def test_sdist_builds_the_same_programs(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert not list(sdist.rglob("*_test.go"))
    assert not (sdist / "tests").exists()
    done = hook(sdist, tmp_path)
    assert done.returncode == 0, done.stdout
    (made,) = tmp_path.iterdir()
    assert made.name == wheel.name
    with zipfile.ZipFile(made) as a, zipfile.ZipFile(wheel) as b:
        assert set(a.namelist()) == set(b.namelist())


def test_without_go_it_says_so(sdist: Path, tmp_path: Path) -> None:
    done = hook(sdist, tmp_path, PATH="/nowhere")
    assert done.returncode != 0
    assert "Go was not found" in done.stdout
    assert "CKPTD_PROGRAMS=DIR" in done.stdout
    assert "Traceback" not in done.stdout


def test_programs_that_were_built_before(sdist: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "ckptd").write_bytes((ROOT / "bin" / "ckptd").read_bytes())
    done = hook(sdist, tmp_path, CKPTD_PROGRAMS=str(given))
    assert done.returncode != 0
    assert "has no ckpt:" in done.stdout
    shutil.copy("/bin/true", given / "ckpt")  # it needs a C library, as a build with RDMA does
    done = hook(sdist, tmp_path, CKPTD_PROGRAMS=str(given))
    assert done.returncode == 0, done.stdout
    assert "-py3-none-linux_" in done.stdout
    (given / "ckpt").write_text("#!/bin/sh\n")
    done = hook(sdist, tmp_path, CKPTD_PROGRAMS=str(given))
    assert done.returncode != 0
    assert "is not a 64-bit" in done.stdout
