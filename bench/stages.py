"""Timed, named stages and progress: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from bench.train import processes

T = TypeVar("T")
LINE_EVERY = 20.0  # seconds between two plain lines of one loop

_seconds: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


@contextmanager
def collect() -> Iterator[dict[str, float]]:
    """Within it, the seconds of every stage add up by name in the dictionary that it gives."""
    token = _seconds.set({})
    try:
        yield _seconds.get()  # type: ignore[misc]
    finally:
        _seconds.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time spent within to the stage of this name (CUDA work included); stages do not nest."""
    start = time.perf_counter()
    try:
        yield
    finally:
        synchronize()
        seconds = _seconds.get()
        if seconds is not None:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU where one is in use, so that a clock read next is true."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def say(text: str) -> None:
    """One plain line for people, above any bar; of several processes that train together the first one speaks."""
    if not processes.rank():
        tqdm.write(text, file=sys.stderr)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Go through the items under a progress bar, or with a plain line now and then where there is no terminal."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty() and not processes.rank():
        yield from tqdm(items, desc=label, total=total, file=sys.stderr, leave=False, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            of = f" of {total}, about {(now - start) / (count + 1) * (total - count - 1):.0f} s to go" if total else ""
            say(f"  {label}: {count + 1}{of}")
            last = now
