"""Every test on one thread (small matrices, busy machines), with a cache and an environment of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

torch.set_num_threads(1)

Bench = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parent.parent
HANGS = 300  # seconds after which a process is stuck, however busy the machine is


def write_task(folder: Path, rows: int = 60, seed: int = 0) -> None:
    """A small pair task in MRPC's columns: do two sentences share their first word?"""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["ant", "bee", "cat", "dog", "elk", "fox"]
    for split, shift in (("train", 0), ("validation", 1)):
        random = np.random.default_rng(seed + shift)
        one = [" ".join(random.choice(words, random.integers(3, 9))) for _ in range(rows)]
        two = [" ".join([*random.choice(words, random.integers(2, 8)), str(i)]) for i in range(rows)]
        label = [int(a.split()[0] == b.split()[0]) for a, b in zip(one, two, strict=True)]
        pq.write_table(pa.table({"sentence1": one, "sentence2": two, "label": label}), folder / f"{split}.parquet")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Data and a warm cache that the slower tests share: task mrpc, model tiny-random."""
    root = tmp_path_factory.mktemp("shared")
    write_task(root / "data" / "mrpc")
    return root


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No test sees the developer's data, models, cache or network."""
    for name in ("BENCH_DATA", "BENCH_MODELS", "BENCH_RESULTS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_float_modes():
    """What a run sets for its process ends with the test; hypothesis refuses to draw floats where subnormals are flushed."""
    yield
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.fixture
def bench(shared, monkeypatch, tmp_path) -> Bench:
    """Run `python -m bench ...` as a user would; task mrpc and model tiny-random have what they need."""

    def run(*words: str, env: dict[str, str] | None = None, module: str = "bench") -> subprocess.CompletedProcess[str]:
        settings = {
            **os.environ,
            "BENCH_DATA": str(shared / "data"),
            "BENCH_CACHE": str(shared / "cache"),
            "BENCH_RESULTS": str(tmp_path / "results"),
            "PYTHONPATH": str(ROOT),
            **(env or {}),
        }
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=tmp_path, timeout=HANGS)

    return run
