"""Fetches the images of the quickstart: 6,296 PNG files of a Debian package, which is taken apart and not installed.

`quickstart_images.py FOLDER` makes the folder, or says what to do. The package is one exact file (SHA-256), from
Debian's mirrors, its archive of everything that ever was, or the mirror that apt knows here.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

PACKAGE, VERSION = "oxygen-icon-theme", "5:5.103.0-1"
SIZE = 31_761_936  # bytes
SHA256 = "3e49023e148906e41457a98a19a09858ddd761ef4f212fa356232924b3cebcce"
URLS = (
    "https://deb.debian.org/debian/pool/main/o/oxygen-icons5/oxygen-icon-theme_5.103.0-1_all.deb",
    "https://snapshot.debian.org/file/1a93dc00d0b6ef0e074c3daf485173fffb8e4636",
)
INSIDE = "usr/share/icons/oxygen/base"


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        got = bytearray()
        while part := answer.read(1 << 18):
            got += part
            if sys.stderr.isatty():
                print(f"\r{len(got) / 1e6:.1f} of {SIZE / 1e6:.1f} MB", end="", file=sys.stderr)
            if len(got) > SIZE:
                break
    if sys.stderr.isatty():
        print("\r" + 30 * " " + "\r", end="", file=sys.stderr)
    return bytes(got)


def by_apt() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        args = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", f"{PACKAGE}={VERSION}"]
        done = subprocess.run(args, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"apt-get download: {done.stderr.strip()}")
        return next(Path(folder).glob("*.deb")).read_bytes()


def package() -> bytes:
    """The package's bytes, of the first place that has them."""
    places: list[tuple[str, Callable[[], bytes]]] = [(url, partial(download, url)) for url in URLS]
    if shutil.which("apt-get"):
        places.append(("apt-get download", by_apt))
    why = []
    for place, fetch in places:
        try:
            deb = fetch()
        except OSError as e:  # urllib's errors are
            why.append(f"{place}: {e}")
            continue
        if hashlib.sha256(deb).hexdigest() == SHA256:
            return deb
        why.append(f"{place}: another file, SHA-256 {hashlib.sha256(deb).hexdigest()}")
    raise OSError("\n".join(["no place has the images:", *why]))


def data_of(deb: bytes) -> bytes:
    """The compressed tar of a package's files: the member data.tar.* of an ar archive."""
    at = 8
    while at + 60 <= len(deb):
        name, size = deb[at : at + 16].decode().strip().rstrip("/"), int(deb[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar."):
            return deb[at : at + size]
        at += size + size % 2
    raise OSError("the package has no data.tar")


def unpack(deb: bytes, folder: Path) -> None:
    """Moves the images to the folder, all or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as near:
        with tarfile.open(fileobj=io.BytesIO(data_of(deb))) as tar:
            images = [m for m in tar if m.name.startswith(f"./{INSIDE}")]
            if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4
                tar.extractall(near, images, filter="data")
            else:
                tar.extractall(near, images)
        os.rename(Path(near) / INSIDE, folder)


if __name__ == "__main__":
    try:
        unpack(package(), Path(sys.argv[1]))
    except OSError as e:
        sys.exit(str(e))
