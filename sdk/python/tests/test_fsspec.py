"""ckptd:// as fsspec's users meet it, and by fsspec's own tests for those who implement it."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.numpy
from conftest import Daemon, binary
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests import abstract
from imports import load

import ckptd
from ckptd.fsspec import CkptdFileSystem

MiB = 1 << 20


@pytest.fixture(autouse=True)
def _program_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_BIN", str(binary()))


@pytest.fixture(scope="module")
def fs(daemon: Daemon) -> CkptdFileSystem:
    return fsspec.filesystem("ckptd", socket=str(daemon.socket))


@pytest.fixture
def pets(daemon: Daemon, tmp_path: Path) -> str:
    """A version with folders, an empty file, an empty folder, and links."""
    root = tmp_path / "pets"
    (root / "cats" / "old").mkdir(parents=True)
    (root / "empty folder").mkdir()
    (root / "cats" / "a.txt").write_bytes(b"meow")
    (root / "cats" / "old" / "b.bin").write_bytes(bytes(range(256)) * 4096)
    (root / "nothing").touch()
    (root / "link").symlink_to("cats/a.txt")
    (root / "folder link").symlink_to("cats")
    (root / "up").symlink_to("cats/../cats/old/../a.txt")
    (root / "outside").symlink_to("/etc/passwd")
    (root / "round").symlink_to("round")
    name = f"pets/{uuid.uuid4().hex[:8]}"
    load(daemon, root, name)
    return name


# --- fsspec's tests for implementers ---------------------------------------------------------------------------------


class Fixtures(abstract.AbstractFixtures):
    """Sets are written once, so fsspec's scenarios, which make one file after the other, are made at once."""

    @pytest.fixture
    def fs(self, daemon: Daemon) -> CkptdFileSystem:
        return fsspec.filesystem("ckptd", socket=str(daemon.socket))

    @pytest.fixture
    def fs_path(self) -> str:
        return f"checkpoints/fsspec/{uuid.uuid4().hex}/1"

    @pytest.fixture
    def fs_join(self) -> Any:
        return lambda *parts: "/".join(parts)

    def _version(self, make: Any, daemon: Daemon, folder: Path) -> str:
        local = LocalFileSystem(auto_mkdir=True)
        make(local, os.path.join, str(folder))
        name = f"fsspec-{uuid.uuid4().hex}"
        load(daemon, folder, name)
        return f"datasets/{name}/1/source"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
        return self._version(self._bulk_operations_scenario_0, daemon, tmp_path_factory.mktemp("bulk"))

    @pytest.fixture
    def fs_glob_edge_cases_files(self, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
        return self._version(self._glob_edge_cases_files, daemon, tmp_path_factory.mktemp("glob"))

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
        return self._version(self._dir_and_file_with_same_name_prefix, daemon, tmp_path_factory.mktemp("prefix"))

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
        return self._version(self._10_files_with_hashed_names, daemon, tmp_path_factory.mktemp("hashed"))


class TestGet(abstract.AbstractGetTests, Fixtures):
    def test_get_directory_recursive(  # makes its file where it wants it: here that is a version which has it
        self, fs: Any, fs_join: Any, local_fs: Any, local_join: Any, local_target: Any, daemon: Daemon, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        (tmp_path / "at" / "src").mkdir(parents=True)
        (tmp_path / "at" / "src" / "file").touch()
        name = f"fsspec-{uuid.uuid4().hex}"
        load(daemon, tmp_path / "at", name)
        monkeypatch.setattr(fs, "touch", lambda path: None)
        at = f"datasets/{name}/1"
        super().test_get_directory_recursive(fs, fs_join, at, local_fs, local_join, local_target)


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass


# --- reading ---------------------------------------------------------------------------------------------------------


def test_checkpoints_are_files(fs: CkptdFileSystem, client: ckptd.Client, run: str) -> None:
    w = np.arange(300_000, dtype=np.float32)
    client.save(run, step=1, state={"w": w}).wait(timeout=60)
    client.save(run, step=20, state={"w": w + 1}).wait(timeout=60)
    assert fs.ls(f"ckptd://checkpoints/{run}", detail=False) == [f"checkpoints/{run}/1", f"checkpoints/{run}/20"]
    path = f"checkpoints/{run}/latest/rank-00000.safetensors"
    info = fs.info(path)
    assert (info["type"], info["set"]) == ("file", f"{run}@20#1")
    assert info["level"] in ckptd.LEVELS[2:]
    raw = fs.cat_file(path)
    assert len(raw) == info["size"] == fs.size(path)
    assert np.array_equal(safetensors.numpy.load(raw)["w"], w + 1)
    for a, b in ((0, 8), (5, -5), (-7, None), (None, None), (info["size"], None), (10, 5), (3, 10**9)):
        assert fs.cat_file(path, a, b) == raw[a:b]
    with fs.open(path) as f:
        assert f.read(9) == raw[:9]
        f.seek(-5, 2)
        assert f.read() == raw[-5:]
    assert fs.isdir(f"checkpoints/{run}/20-1")
    assert fs.isdir(f"checkpoints/{run.rsplit('/', 1)[0]}")
    assert fs.created(path).tzinfo is not None
    assert b"tensors" in fs.cat_file(f"checkpoints/{run}/1/.manifest.json")
    assert fs.find(f"checkpoints/{run}") == [f"checkpoints/{run}/{s}/rank-00000.safetensors" for s in (1, 20)]
    assert fs.ukey(path) != fs.ukey(f"checkpoints/{run}/1/rank-00000.safetensors")


def test_versions_are_files(fs: CkptdFileSystem, pets: str) -> None:
    root = f"datasets/{pets}/1"
    kinds = {i["name"].removeprefix(f"{root}/"): (i["type"], i["size"]) for i in fs.ls(root)}
    assert kinds == {
        "cats": ("directory", 0), "empty folder": ("directory", 0), "nothing": ("file", 0), "link": ("file", 4),
        "up": ("file", 4),
    }  # fmt: skip
    assert fs.ls(f"datasets/{pets}", detail=False) == [root]
    assert f"datasets/{pets.split('/')[0]}" in fs.ls("datasets", detail=False)
    assert fs.ls("", detail=False) == ["checkpoints", "datasets"]
    assert fs.cat(f"datasets/{pets}/latest/link") == b"meow"
    assert fs.cat(f"{root}/folder link/a.txt") == fs.cat(f"{root}/up") == b"meow"
    assert fs.cat(f"{root}/nothing") == b""
    assert fs.ls(f"{root}/empty folder") == []
    assert sorted(fs.find(root)) == [f"{root}/{p}" for p in ("cats/a.txt", "cats/old/b.bin", "link", "nothing", "up")]
    assert fs.glob(f"{root}/**/*.bin") == [f"{root}/cats/old/b.bin"]
    want = bytes(range(256)) * 4096
    a, b = [i * 1000 for i in range(40)], [i * 1001 for i in range(40)]
    got = fs.cat_ranges([f"{root}/cats/old/b.bin"] * 40, a, b)
    assert got == [want[lo:hi] for lo, hi in zip(a, b, strict=True)]
    assert {i.get("destination") for i in fs.ls(root)} == {None, "cats/a.txt", "cats/../cats/old/../a.txt"}
    for gone in ("outside", "round", "cats/none", "cats/a.txt/x", "link/x", "../1"):
        with pytest.raises(FileNotFoundError):
            fs.cat(f"{root}/{gone}")
        assert not fs.exists(f"{root}/{gone}")


def test_what_is_not_there(fs: CkptdFileSystem) -> None:
    for path in ("x", "checkpoints/none", "checkpoints/no/1/f", "datasets/none", "datasets/no/1", "checkpoints/a@b/1"):
        with pytest.raises(FileNotFoundError):
            fs.info(path)
        assert not fs.exists(path)
    nobody = CkptdFileSystem(socket="/nobody/listens", skip_instance_cache=True)
    with pytest.raises(ckptd.Unavailable):
        nobody.exists("checkpoints/x")  # nobody knows
    with pytest.raises(ckptd.Invalid, match="AsyncFileSystemWrapper"):
        CkptdFileSystem(asynchronous=True, skip_instance_cache=True)


def test_threads_forks_pickles_and_asyncio(fs: CkptdFileSystem, pets: str) -> None:
    path = f"datasets/{pets}/1/cats/old/b.bin"
    want = bytes(range(256)) * 4096
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fs.cat_file, [path] * 32)) == {want}
    assert pickle.loads(pickle.dumps(fs)).cat_file(path) == want
    with fs.open(path) as f:
        f.seek(256)
        assert pickle.loads(pickle.dumps(f)).read(3) == bytes([0, 1, 2])
    if threading.active_count() == 1 and (pid := os.fork()) == 0:
        os._exit(0 if fs.cat_file(path) == want else 1)
    elif threading.active_count() == 1:
        assert os.waitpid(pid, 0)[1] == 0
    code = f"import fsspec; print(len(fsspec.open({'ckptd://' + path!r}, socket={fs.client.socket!r}).open().read()))"
    env = {**os.environ, "PYTHONPATH": str(Path(ckptd.__file__).parents[1])}
    command = [sys.executable, "-c", f"import ckptd.fsspec; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == str(MiB), done.stderr

    async def both() -> list[bytes]:
        wrapped = AsyncFileSystemWrapper(fs, asynchronous=True)
        return list(await asyncio.gather(*(wrapped._cat_file(path, i, i + 1) for i in range(8))))

    assert asyncio.run(both()) == [bytes([i]) for i in range(8)]


def test_an_open_file_keeps_its_set(fs: CkptdFileSystem, client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state={"w": np.zeros(3 * MiB, np.uint8)}).wait(timeout=60)
    with fs.open(f"checkpoints/{run}/1/rank-00000.safetensors", cache_type="none") as f:
        with pytest.raises(ckptd.Conflict, match="is reading it"):
            fs.rm(f"checkpoints/{run}/1", recursive=True)
        assert len(f.read()) == f.size
    fs.rm(f"checkpoints/{run}/1", recursive=True)
    assert not fs.exists(f"checkpoints/{run}/1")


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_or_not_at_all(fs: CkptdFileSystem, client: ckptd.Client, run: str) -> None:
    path = f"checkpoints/{run}/7/config.json"
    with fs.open(path, "w") as f:
        f.write('{"a": 1}')
        assert not fs.exists(path)
    assert fs.cat(path) == b'{"a": 1}'
    assert client.set(f"{run}@7").reached("local")
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with pytest.raises(ZeroDivisionError), fs.open(f"checkpoints/{run}/8/half", "wb") as f:  # noqa: PT012
        f.write(b"half")
        f.write(b"%d" % (1 // 0))
    assert not fs.exists(f"checkpoints/{run}/8")
    with fs.open(path, "wb") as f:
        f.write(b"again")
    assert fs.cat(path) == b"again"
    assert client.set(f"{run}@7").attempt == 2
    fs.rm(path)
    assert not fs.exists(path)
    with pytest.raises(ckptd.Invalid, match="empty"):
        fs.touch(f"checkpoints/{run}/9/empty")
    bad_ones = f"checkpoints/{run}/latest/f", f"checkpoints/{run}/1/.manifest.json", "datasets/x/1/f", "else/1/f"
    for bad in ("checkpoints/x", *bad_ones):
        with pytest.raises(ckptd.Invalid, match="nothing can be written there"):
            fs.open(bad, "wb")
    with pytest.raises(ckptd.Invalid, match="written once"):
        fs.open(path, "ab")


def test_a_transaction_is_one_set(fs: CkptdFileSystem, client: ckptd.Client, run: str) -> None:
    big = os.urandom(20 * MiB)
    with fs.transaction:
        fs.pipe_file(f"checkpoints/{run}/1/a", b"A")
        with fs.open(f"checkpoints/{run}/1/big", "wb") as f:
            f.write(big)
        fs.pipe_file(f"checkpoints/{run}/2/b", b"B")
        assert not fs.exists(f"checkpoints/{run}")
    assert fs.find(f"checkpoints/{run}") == [f"checkpoints/{run}/{p}" for p in ("1/a", "1/big", "2/b")]
    assert client.set(f"{run}@1").world == 2
    assert fs.cat(f"checkpoints/{run}/1/big") == big
    with pytest.raises(ZeroDivisionError), fs.transaction:
        fs.pipe_file(f"checkpoints/{run}/3/c", b"%d" % (1 // 0))
    assert not fs.exists(f"checkpoints/{run}/3")
    with pytest.raises(PermissionError, match="go together"):
        fs.rm(f"checkpoints/{run}/1/a")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"checkpoints/{run}/1")
    fs.rm(f"checkpoints/{run}/1", recursive=True)
    assert not fs.exists(f"checkpoints/{run}/1")


def test_put_makes_one_set_and_one_version(fs: CkptdFileSystem, tmp_path: Path, run: str) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"A")
    (source / "b").write_bytes(b"B" * MiB)
    fs.put([str(source / "a"), str(source / "b")], f"checkpoints/{run}/1/")
    assert fs.info(f"checkpoints/{run}/1/a")["set"] == fs.info(f"checkpoints/{run}/1/b")["set"]
    (source / "deep" / "c").touch()
    name = f"put/{uuid.uuid4().hex}"
    fs.put(str(source) + "/", f"datasets/{name}/.next/", recursive=True)
    assert fs.find(f"datasets/{name}") == [f"datasets/{name}/1/{p}" for p in ("a", "b", "deep/c")]
    assert fs.cat(f"datasets/{name}/1/b") == b"B" * MiB
    with fs.transaction:
        fs.pipe_file(f"datasets/{name}/.next/only", b"2")
    assert fs.find(f"datasets/{name}/latest") == [f"datasets/{name}/latest/only"]
    with pytest.raises(ckptd.Invalid, match="as a whole"):
        fs.open(f"datasets/{name}/.next/x", "wb")
    got = tmp_path / "got"
    fs.get(f"datasets/{name}/1", str(got), recursive=True)
    assert (got / "b").read_bytes() == b"B" * MiB
    leftovers = [p for p in Path(os.environ.get("TMPDIR", "/tmp")).glob("ckptd-fsspec-*") if p.is_file()]
    assert leftovers == []


# --- what reads through it -------------------------------------------------------------------------------------------


def test_pandas_pyarrow_and_datasets_read_it(
    daemon: Daemon, fs: CkptdFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import pandas as pd
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    table = pd.DataFrame({"i": np.arange(1000), "text": [f"row {i}" for i in range(1000)]})
    (tmp_path / "rows").mkdir()
    for part in range(3):
        table.assign(part=part).to_parquet(tmp_path / "rows" / f"{part}.parquet", row_group_size=100)
    table.to_csv(tmp_path / "rows" / "all.csv", index=False)
    name = f"rows-{uuid.uuid4().hex}"
    load(daemon, tmp_path / "rows", name)
    url = f"ckptd://datasets/{name}/latest"
    assert pd.read_parquet(f"{url}/1.parquet", columns=["i", "part"])["part"].eq(1).all()
    assert pd.read_csv(f"{url}/all.csv").equals(table)
    assert pq.read_table(f"datasets/{name}/1/0.parquet", filesystem=fs, filters=[("i", "<", 10)]).num_rows == 10
    found = ds.dataset([f"datasets/{name}/1/{p}.parquet" for p in range(3)], filesystem=fs, format="parquet")
    assert found.count_rows() == 3000
    rows = datasets.load_dataset(
        "parquet", data_files=f"{url}/*.parquet", split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert sum(1 for _ in rows) == 3000
    table.to_parquet(f"ckptd://checkpoints/{name}/1/metrics.parquet")
    assert pd.read_parquet(f"ckptd://checkpoints/{name}/1/metrics.parquet").equals(table)


@pytest.fixture(scope="module", autouse=True)
def _no_instances_left() -> Iterator[None]:
    yield
    CkptdFileSystem.clear_instance_cache()


def test_the_page_is_true() -> None:
    """docs/fsspec.md, its blocks one after the other."""
    page = (Path(ckptd.__file__).parents[1] / "docs" / "fsspec.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    with ckptd.local(arena="64MiB", options=["--remote", "none"]):
        for block in blocks:
            exec(block, names)
