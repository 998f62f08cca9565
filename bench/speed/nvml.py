"""What the NVIDIA driver tells of the GPU in use: energy, clocks, power limit, other processes."""

from collections.abc import Callable
from functools import cache
from typing import Any

MILLIJOULES = 1e-3


@cache
def _device() -> tuple[Any, Any] | None:
    """The library and the handle of torch's current GPU; None where either is missing."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # no driver, no library, a card that answers to another name: nothing is told
        return None


def _ask(question: Callable[[Any, Any], Any]) -> Any:
    device = _device()
    if device is None:
        return None
    try:
        return question(*device)
    except Exception:  # not every card answers every question
        return None


def energy() -> float | None:
    """Joules that the GPU has used since the driver was loaded; None where it does not count."""
    counted = _ask(lambda lib, handle: lib.nvmlDeviceGetTotalEnergyConsumption(handle))
    return None if counted is None else float(counted) * MILLIJOULES


def notes() -> list[str]:
    """Clocks and power limit, in words."""
    clock = _ask(lambda lib, handle: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM))
    highest = _ask(lambda lib, handle: lib.nvmlDeviceGetMaxClockInfo(handle, lib.NVML_CLOCK_SM))
    limit = _ask(lambda lib, handle: lib.nvmlDeviceGetEnforcedPowerLimit(handle))
    told = [] if clock is None or highest is None else [f"SM clock {clock} of {highest} MHz"]
    return told + ([] if limit is None else [f"power limit {limit / 1000:.0f} W"])


def warnings() -> list[str]:
    """Other processes that compute on the GPU: timings beside them say little."""
    processes = _ask(lambda lib, handle: lib.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    others = len(processes) - 1  # one is this one, under whatever number the host knows it by
    return [f"{others} other process{'es' * (others > 1)} on the GPU while timing"] if others > 0 else []
