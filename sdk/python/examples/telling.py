"""What the stories of the quickstart say, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Failed(Exception):
    """The quickstart did not show what it is there to show."""


def tell(title: str, text: str) -> None:
    print(f"  {title:<9} {text}", flush=True)


def mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def rate(size: float, seconds: float) -> str:
    return f"{size / 1e9 / seconds:.2f} GB/s"


def took(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def until(what: str, timeout: float, check: Callable[[], Any]) -> float:
    """Waits until check() is true and returns how long that took, in seconds."""
    begin = time.perf_counter()
    while not check():
        if time.perf_counter() - begin > timeout:
            raise Failed(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.005)
    return time.perf_counter() - begin
