"""What a run runs on: device, cores, instruction set, load; and the settings that the harness owns."""

import ctypes
import importlib.util
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from bench.errors import UserError
from bench.train import processes

CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be repeatable


def resolve_device(wanted: str) -> str:
    """`auto`, `cpu` or `cuda` to what is used, without importing torch.

    Raises:
        UserError: cuda is asked for and not there.
    """
    there = bool(_cuda_devices())
    if wanted == "cuda" and not there:
        why = "this PyTorch has no CUDA support" if not _torch_has_cuda() else "no CUDA device answers"
        raise UserError(f"device=cuda: {why}; use device=cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return bool(re.search(r"^cuda\b[^=]*=\s*['\"]", version.read_text(), re.MULTILINE)) if version.exists() else False


@cache
def _cuda_devices() -> list[str]:
    """The names of the CUDA devices, from the driver's library; none where torch could not use them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not _torch_has_cuda():
        return []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for device in range(count.value):
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names


def usable_cores() -> int:
    """Cores that this process may use: its affinity and a container's CPU limit, not what the host has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name and flags."""
    name, flags = platform.processor() or platform.machine() or "cpu", frozenset[str]()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return name, flags
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return (found.group(1).strip() if found else name), frozenset(listed.group(1).split() if listed else ())


def dtypes(device: str) -> list[str]:
    """The precisions that a device has units for; a CPU computes the others too, but slower than float32."""
    if device == "cuda":
        return ["float32", "float16"] + ["bfloat16"] * (_cuda_major() >= 8)
    flags = _cpu()[1]
    half = ["float16"] * bool(flags & {"amx_fp16", "avx512_fp16", "fphp"})
    return ["float32", *half, *["bfloat16"] * bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})]


def has_bf16(device: str) -> bool:
    """Whether bf16 is worth having."""
    return "bfloat16" in dtypes(device)


@cache
def _cuda_major() -> int:
    """Major number of the first CUDA device's compute capability (8: Ampere)."""
    major = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    return major.value


def machine_name(device: str) -> str:
    """A short stable name such as `xeon-2c-amx` or `h200`: timings of different hardware never share one."""
    if device == "cuda":
        name = re.sub(r"nvidia|geforce|tesla|graphics|gpu", "", _cuda_devices()[0], flags=re.IGNORECASE)
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    name, flags = _cpu()
    brands = r"(xeon|epyc|ryzen|core|opteron|graviton|neoverse|apple m\d+|arm|aarch64)"
    brand = re.search(brands, name.lower())
    best = next(
        (short for flag, short in [("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"), ("sve", "sve"),
                                   ("asimd", "neon")] if flag in flags),
        platform.machine().lower(),
    )  # fmt: skip
    return f"{(brand.group(1) if brand else 'cpu').replace(' ', '-')}-{usable_cores()}c-{best}"


def load_per_core(seconds: float = 0.3) -> float:
    """Other work on the machine, per core, over a moment in which this process sleeps."""
    return round(psutil.cpu_percent(interval=seconds) / 100, 2)


class OtherWork:
    """Work of other processes between its making and `per_core`, as a share of every core."""

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """The clock, and busy seconds of the whole machine and of this process."""
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        # getattr: not every system counts waiting for disks, or time stolen by a hypervisor
        busy = machine.user + machine.system + getattr(machine, "nice", 0.0) + getattr(machine, "irq", 0.0)
        return time.monotonic(), busy + getattr(machine, "softirq", 0.0), own.user + own.system

    def per_core(self) -> float:
        """0: the machine was ours; 1: every core was also wanted by somebody else."""
        clock, busy, own = (after - before for after, before in zip(self._now(), self.start, strict=True))
        return max(0.0, busy - own) / max(clock, 1e-9) / (psutil.cpu_count() or 1)


def named(device: str, threads: int) -> dict[str, Any]:
    """What the record's `machine` begins with: what a stored record is looked up by."""
    return {"name": machine_name(device), "threads": threads}


def settled(device: str, threads: int) -> dict[str, Any]:
    """Settle the threads and float modes. Returns the rest of the record's `machine`."""
    load = load_per_core()
    settle(threads)
    return describe(device, load)


def describe(device: str, load: float) -> dict[str, Any]:
    """What the record's `machine` says beside the name and the threads."""
    gpu = driver = None
    if device == "cuda":
        gpu = _cuda_devices()[0]
        version = Path("/proc/driver/nvidia/version")
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", version.read_text()) if version.exists() else None
        driver = found.group(1) if found else None
    return {
        "load": load,
        "cpu": _cpu()[0],
        "cores": usable_cores(),
        "processes": processes.world(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "driver": driver,
        "os": f"{platform.system()} {platform.release()}",
    }


def settle(threads: int) -> None:
    """Thread count and float modes, owned by the harness and the same for dense and pruned models.

    Subnormals are flushed before the worker threads start, which inherit it: weights that training has driven towards
    zero would otherwise slow a model down by an order of magnitude and be timed as its speed.
    """
    import torch

    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    os.environ.setdefault(*CUBLAS)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if processes.world() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(processes.local_rank())  # what a process calls cuda from here on


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """On a GPU only operations that give the same numbers twice; others raise a RuntimeError. A CPU has no others."""
    if device != "cuda":
        yield
        return
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    os.environ.setdefault(*CUBLAS)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def hush() -> None:
    """transformers' reports and bars off: the harness says what happens in its own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
