"""Peak memory of a piece of work."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import torch


def give_back_freed_memory() -> None:
    """What earlier work in this process has freed goes back to the system, else it would hide new memory (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Peak bytes within it beyond the start: the allocator's on a GPU, sampled resident memory on a CPU. Asked afterwards."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = highest = torch.cuda.memory_allocated()
        try:
            yield lambda: highest - before
        finally:
            highest = torch.cuda.max_memory_allocated()
        return
    give_back_freed_memory()
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: highest - before
    finally:
        done.set()
        watcher.join()
