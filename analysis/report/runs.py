"""A run as it opens below a row."""

import json
from dataclasses import dataclass
from typing import Any

from analysis.frame import Frame
from analysis.report.text import spaced
from bench.records.reading import has_random_weights, method_label, passes
from bench.records.schema import Record
from bench.records.table import number

UNITS = {"flops": "FLOPs", "params": "parameters", "weights": "single weights", "latency": "the time of a forward pass"}


@dataclass(frozen=True)
class Run:
    """A record as it opens below a row."""

    anchor: str
    title: str
    command: str
    configuration: str
    facts: dict[str, str]
    reason: str | None


def run_of(frame: Frame, folder: str, position: int) -> Run:
    """What a record says of its run."""
    record = frame.stored[folder].record
    row: Any = frame.table.loc[folder]
    title = f"{record['method']['name']}, seed {record['seed']}, {record['machine']['name']}, {record['created'][:10]}"
    found = {**_facts(record), **_timings(record, bool(row.quiet)), **_origin(record)}
    facts = {name: text for name, text in found.items() if text}
    return Run(f"run-{position}", title, record["command"], _configuration(record), facts, record["reason"])


def _facts(record: Record) -> dict[str, str]:
    """What was run, and what is left."""
    pruned = record["pruned"]
    metrics = (pruned["metrics"] or {}).items()
    return {
        "method": method_label(record),
        "task": record["task"],
        "model": record["model"] + " (random weights)" * has_random_weights(record),
        "removed": f"{record['ratio']:g} of the {UNITS.get(record['unit'], record['unit'])}",
        "seed": str(record["seed"]),
        "score": _number(pruned["score"], ".2f"),
        "dense score": _number(record["dense"]["score"], ".2f"),
        "metrics": ", ".join(f"{name} {value:.2f}" for name, value in metrics if value is not None) if len(metrics) > 1 else "",
        "FLOPs kept": _percent(pruned["flops_kept"]),
        "parameters kept": _percent(pruned["params_kept"]),
        "single weights kept": _percent(pruned["weights_kept"]),
        "heads left": " ".join(map(str, pruned["heads"] or [])),
        "neurons left": " ".join(map(str, pruned["neurons"] or [])),
    }


def _timings(record: Record, quiet: bool) -> dict[str, str]:
    """What pruning cost, and what it gained."""
    prune, timing = record["prune"], record["latency"]["headline"] or {}
    speedup = f"{timing['speedup']:.2f} [{timing['low']:.2f}, {timing['high']:.2f}]" if timing.get("speedup") else ""
    limits = record["latency"].get("limits") or {}
    return {
        "passes": _number(passes(record), ".2f"),
        "pruning": _number(prune["seconds"], ".1f", " s") if quiet else "not alone on the machine",
        "peak memory": _number(prune["peak_bytes"] and prune["peak_bytes"] / 1e6, ".0f", " MB"),
        "speedup": speedup and f"{speedup} at batch {timing['batch']}, {timing['length']} tokens",
        "FLOPs would allow": _number(limits.get("flops_bound"), ".2f"),
        "what limits": limits.get("verdict") or "",
        "notes": "; ".join(prune["notes"] + record["latency"]["notes"]),
    }


def _origin(record: Record) -> dict[str, str]:
    """Where, when and by what it was made."""
    calibration, software = record["calibration"], record["software"]
    return {
        "calibration": f"{spaced(calibration['tokens'])} tokens, {calibration['examples']} examples" if calibration["tokens"] else "",
        "machine": f"{record['machine']['name']}, {record['device']}",
        "made": record["created"][:10],
        "versions": ", ".join(f"{name} {software[name]}" for name in ("python", "torch", "transformers") if software[name]),
        "commit": (software["commit"] or "")[:12] + " and changes" * bool(software["dirty"]),
    }


def _configuration(record: Record) -> str:
    """All that was set, as JSON."""
    keys = ("method", "unit", "ratio", "seed", "device", "precision", "attention", "round_to", "recover")
    found = {key: record.get(key) for key in keys}
    sample = {key: record["calibration"][key] for key in ("sampler", "tokens", "batch")}
    checkpoint = record["dense"]["checkpoint"]
    settings = {**found, "calibration": sample, "checkpoint": checkpoint, "latency": record["latency"]["plan"]}
    return json.dumps(settings, ensure_ascii=False)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else number(value, form, unit)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
