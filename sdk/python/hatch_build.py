"""What pip runs to put the programs `ckptd` and `ckpt` into the wheel, and their Go sources into the sdist.

1. The programs are built here with Go, from the checkout or from the sources that an sdist carries. CKPTD_PROGRAMS=DIR
   takes those of a folder instead; without Go, those of the checkout's bin/ are taken, and that is said.
2. The wheel's platform is read from the programs: for a static program any Linux of that processor, for one that
   needs a C library (a build with RDMA) only this one.
3. The wheel carries the licenses of every Go module whose code is in the programs.
4. An editable install carries none: the SDK in a checkout uses the checkout's bin/.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("ckptd", "ckpt")
COMMANDS = tuple(f"./cmd/{p}" for p in PROGRAMS)
# What `go list` calls the files of a package that a build on any platform reads.
SOURCES = ("GoFiles", "CgoFiles", "IgnoredGoFiles", "CFiles", "HFiles", "SFiles", "EmbedFiles")
LICENSE = re.compile(r"(licen[cs]e|copying|notice|patents)", re.IGNORECASE)
PT_INTERP = 3  # of an ELF file: a dynamic linker is asked for
MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}  # ELF's numbers


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        source = sources_beside(root)
        try:
            if self.target_name == "sdist":
                build_data["force_include"].update(self._sdist(root, source))
            elif version != "editable":
                self._wheel(root, source, build_data)
        except Unbuilt as e:
            self.app.abort(f"\nckptd: {e}\n")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_temp"):
            self._temp.cleanup()

    def _wheel(self, root: Path, source: Path | None, build_data: dict[str, Any]) -> None:
        self._temp = tempfile.TemporaryDirectory(prefix="ckptd-wheel-")
        go = shutil.which(os.environ.get("GO", "go"))
        given = os.environ.get("CKPTD_PROGRAMS")
        if given:
            folder = Path(given).absolute()
        elif go and source:
            folder = Path(self._temp.name)
            self.app.display_info("building ckptd and ckpt with Go; the first time takes a minute or two")
            build(go, source, folder, described(source) or self.metadata.version)
        elif all((root.parents[1] / "bin" / p).exists() for p in PROGRAMS):
            folder = root.parents[1] / "bin"
            self.app.display_warning(f"no Go here: the wheel gets the programs that were built before, of {folder}")
        elif source is None:
            raise Unbuilt(
                f"the Go sources of ckptd and ckpt are not there: {root} is neither in a checkout nor an sdist.\n"
                "Install from a whole checkout (pip install ./sdk/python), or name a folder that has both programs\n"
                "with CKPTD_PROGRAMS=DIR."
            )
        else:
            raise Unbuilt(
                "Go was not found, and the wheel carries two Go programs, ckptd and ckpt.\n"
                f"Install Go {required(source)} or newer (https://go.dev/dl) and put it into PATH, or name it with\n"
                "GO=/path/to/go, or name a folder that has both programs with CKPTD_PROGRAMS=DIR."
            )
        missing = [p for p in PROGRAMS if not (folder / p).is_file()]
        if missing:
            raise Unbuilt(f"{folder} has no {' and no '.join(missing)}: `make build` makes both in bin/.")
        build_data["tag"] = f"py3-none-{wheel_platform([folder / p for p in PROGRAMS])}"
        build_data["pure_python"] = False
        build_data["shared_scripts"].update({str(folder / p): p for p in PROGRAMS})
        if go and source:
            notices = Path(self._temp.name) / "THIRD_PARTY.txt"
            notices.write_text(third_party(go, source), encoding="utf-8")
            name = self.metadata.core.name.replace("-", "_")
            build_data["force_include"][str(notices)] = (
                f"{name}-{self.metadata.version}.dist-info/licenses/{notices.name}"
            )
        else:
            self.app.display_warning("without Go the wheel lacks the licenses of the modules in its programs: keep it")

    def _sdist(self, root: Path, source: Path | None) -> dict[str, str]:
        """The Go files that the programs are built of, by their place in the sdist."""
        if source is None:
            raise Unbuilt(f"an sdist is made in a checkout; beside {root} are no Go sources.")
        if source == root / "go":  # from an sdist: they are there already
            return {}
        go = shutil.which(os.environ.get("GO", "go"))
        if not go:
            raise Unbuilt("Go was not found; it tells which sources the sdist needs (https://go.dev/dl).")
        files = {str(source / name): f"go/{name}" for name in ("go.mod", "go.sum")}
        decoder, text, at = json.JSONDecoder(), tool([go, "list", "-deps", "-json", *COMMANDS], source), 0
        while at < len(text.rstrip()):
            package, at = decoder.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
            if package.get("Module", {}).get("Main"):
                for name in (f for kind in SOURCES for f in package.get(kind, ()) if not f.endswith("_test.go")):
                    file = Path(package["Dir"]) / name
                    files[str(file)] = f"go/{file.relative_to(source).as_posix()}"
        return files


class Unbuilt(Exception):
    """Why there is no wheel, and what to do."""


def sources_beside(root: Path) -> Path | None:
    """Where the Go module is: go/ of an sdist, or the checkout that sdk/python lies in."""
    for folder in (root / "go", root.parents[1]):
        mod = folder / "go.mod"
        if mod.exists() and mod.read_text().startswith("module github.com/ckptd/ckptd\n"):
            return folder
    return None


def required(source: Path) -> str:
    """The Go that go.mod asks for."""
    found = re.search(r"^go (\S+)", (source / "go.mod").read_text(), re.MULTILINE)
    return found[1] if found else ""


def described(source: Path) -> str | None:
    """The checkout's version, as the Makefile says it; None in an sdist, which may lie in anybody's repository."""
    if not (source / ".git").exists() or not shutil.which("git"):
        return None
    return tool(["git", "describe", "--tags", "--always", "--dirty"], source).strip()


def build(go: str, source: Path, into: Path, version: str) -> None:
    """Both programs, as `make build` makes them."""
    if sys.platform != "linux" and not os.environ.get("GOOS"):
        raise Unbuilt("ckptd runs on Linux only (it lends memory through file descriptors, and mounts by FUSE).")
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", f"-s -w -X main.version={version}"]
    tool([go, "build", *flags, "-o", f"{into}/", *COMMANDS], source)


def tool(command: list[str], folder: Path) -> str:
    """What a program prints; its own words when it fails."""
    env = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise Unbuilt(
            f"{' '.join(command[:2])} did not work in {folder}:\n{said}\n"
            "It needs the Go that go.mod names, and a Go module proxy (GOPROXY) or a filled module cache."
        )
    return done.stdout


def wheel_platform(programs: list[Path]) -> str:
    """The platform tag of a wheel with these programs."""
    found = {elf(p) for p in programs}
    machines = {m for m, _ in found}
    if len(machines) != 1:
        raise Unbuilt(f"{programs[0].parent} has programs for different processors: {', '.join(sorted(machines))}.")
    machine = machines.pop()
    if any(linked for _, linked in found) or machine not in MACHINES.values():
        return f"linux_{machine}"
    return f"manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"


def elf(program: Path) -> tuple[str, bool]:
    """The processor that a program is for, and whether it needs a dynamic linker."""
    with open(program, "rb") as f:
        head = f.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            raise Unbuilt(f"{program} is not a 64-bit little-endian Linux program.")
        (machine,), (table,) = struct.unpack_from("<H", head, 18), struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        f.seek(table)
        segments = f.read(size * count)
    kinds = [struct.unpack_from("<I", segments, i)[0] for i in range(0, len(segments) - 3, size or 1)]
    return MACHINES.get(machine, platform.machine()), PT_INTERP in kinds


def third_party(go: str, source: Path) -> str:
    """The licenses of Go's library and of every module that the programs are built of."""
    form = "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}"
    listed = sorted({line for line in tool([go, "list", "-deps", "-f", form, *COMMANDS], source).splitlines() if line})
    goroot, goversion = tool([go, "env", "GOROOT", "GOVERSION"], source).splitlines()
    parts = ["The programs ckptd and ckpt contain code of these, each under its own license, which follows.\n"]
    for line in [f"The Go standard library\t{goversion}\t{goroot}", *listed]:
        path, version, folder = line.split("\t")
        named = sorted(f for f in Path(folder).iterdir() if f.is_file() and LICENSE.match(f.name)) if folder else []
        texts = [f.read_text(encoding="utf-8", errors="replace").strip() for f in named]
        parts.append("\n\n".join([f"{'=' * 100}\n{path} {version}\n{'=' * 100}", *(texts or ["(no license file)"])]))
    return "\n\n".join(parts) + "\n"
