"""What a run leaves: one record with every key always present, null where it was not measured."""

import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench.budget import Budget
from bench.config import Run
from bench.dense.finding import Checkpoint
from bench.masks import Masks, WeightMasks
from bench.records.identity import method_source
from bench.records.schema import INSIDE, SCHEMA, Record
from bench.tasks.data import TaskData

if TYPE_CHECKING:
    from torch import nn

    from bench.model import PrunableModel
    from bench.speed.latency_table import Table
    from bench.tasks.kind import Score


def run_id(run: Run, checkpoint_sha256: str | None, protocol: int, table: "Table | None" = None, base: Any = None) -> str:
    """Hash of the meaning of a run: what is computed, never where from or how fast.

    A budget in seconds means something only beside the latency table that it is counted in, a method that starts from the base
    encoder beside that (`base`: its identity).
    """
    meaning = {**run.meaning(), "checkpoint": checkpoint_sha256, "schema": SCHEMA, "protocol": protocol}
    if base:
        meaning["base"] = base
    if table:
        meaning["table"] = table.sha256
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def blank(run: Run, data: TaskData, protocol: int, known: str | None = None) -> Record:
    """The record of a run that has not begun: every key, what is known filled in; `known`: the run's id, where it is."""
    plan = run.keys.calibration
    return {
        "schema": SCHEMA,
        "id": known or run_id(run, None, protocol),
        "status": "failed",
        "reason": None,
        "created": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "command": run.command,
        "method": {"name": run.method, **run.method_fields},
        "task": run.task_name,
        "model": run.model_name,
        "unit": run.keys.unit,
        "ratio": run.keys.ratio,
        "seed": run.keys.seed,
        "device": run.device,
        "precision": run.keys.precision,
        "attention": run.model.attention,
        "recover": run.recover,
        "round_to": run.keys.round_to,
        "protocol": protocol,
        "data": data_section(data),
        "calibration": {**dict.fromkeys(INSIDE["calibration"]), "sampler": plan.sampler, "batch": plan.batch, "cut": None},
        "dense": {**dict.fromkeys((*INSIDE["dense"], "base")), "notes": []},
        "pruned": {**dict.fromkeys((*INSIDE["pruned"], "mask_bytes", "mask_sha256")), "notes": []},
        "prune": {**dict.fromkeys((*INSIDE["prune"], "other_work")), "notes": []},
        "latency": {
            "plan": run.keys.latency.plan,
            "headline": None,
            "grid": [],
            "notes": [],
            "positions": None,
            "table": None,
            "limits": None,
            "rounding": None,
        },
        "seconds": dict.fromkeys(INSIDE["seconds"]),
        "machine": None,
        "software": software(run),
    }


def data_section(data: TaskData) -> Record:
    """The record's `data` of a run that has not begun."""
    return {"train": data.train.sha256, "validation": data.validation.sha256, "source": data.source, "cut": None}


def dense_section(run: Run, checkpoint: Checkpoint, dense: "PrunableModel", before: "Score | None") -> Record:
    """The record's `dense`; FLOPs of the units at the task's length, true parameters of the layers."""
    return {
        "score": before and before.score,
        "metrics": before and before.metrics,
        "flops": _flops(run, dense).total,
        "params": dense.encoder_parameters(),
        "checkpoint": {"source": checkpoint.source, "sha256": checkpoint.sha256},
        "expected": checkpoint.expected,
    }


def pruned_section(run: Run, dense: "PrunableModel", masks: Masks, small: "nn.Module", weights: WeightMasks | None) -> Record:
    """What is left, for the record's `pruned`: costs, true parameters, units per layer; of single weights their share, and the
    size and hash of their packed masks."""
    costs = _flops(run, dense)
    params = sum(p.numel() for p in small.get_submodule(run.model.arch.layers).parameters())
    return {
        "flops": costs.cost(masks),
        "params": params,
        "flops_kept": costs.cost(masks) / costs.total,
        "params_kept": params / dense.encoder_parameters(),
        "heads": (masks.heads != 0).sum(1).tolist(),
        "neurons": (masks.neurons != 0).sum(1).tolist(),
        "weights_kept": weights and weights.share,
        "mask_bytes": weights and weights.packed_bytes,
        "mask_sha256": weights and weights.sha256(),
    }


def _flops(run: Run, dense: "PrunableModel") -> Budget:
    """FLOPs as a budget, whatever unit the ratio counts."""
    return Budget.of(dense, "flops", run.keys.ratio, run.task.length)


def software(run: Run) -> dict[str, Any]:
    """Versions, the commit of this checkout, and the hash of the method's source."""
    commit, dirty = _commit()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        "prunebench": bench.__version__,
        "commit": commit,
        "dirty": dirty,
        "method_source": method_source(run.method_target),
    }


@cache
def _commit() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed, or inside somebody else's repository
        return None, None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "bench", "methods", "conf"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def strict(value: Any) -> Any:
    """The same data for strict JSON: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
