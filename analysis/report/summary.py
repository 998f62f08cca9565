"""What the page says first: counts, who is ahead, and on which machines."""

from collections.abc import Iterator

import pandas as pd

from analysis.frame import Frame
from analysis.report.text import NONE
from bench.records.schema import Record

COUNTED = {"tasks": "task", "models": "model", "methods": "method", "machines": "machine", "seeds": "seed"}


def counts(frame: Frame) -> dict[str, int]:
    """Of runs, and of what they vary in."""
    table = frame.table
    return {"runs": len(table), **{name: table[column].nunique() for name, column in COUNTED.items()}}


def nothing(frame: Frame) -> str:
    """Why there is no score that compares, where there is none."""
    table = frame.table
    random = int((table.random_weights & (table.status == "ok")).sum())
    found = {f"{name}": int(count) for name, count in table.status[table.status != "ok"].value_counts().items()}
    found |= {"with random weights": random} if random else {}
    reasons = ", ".join(f"{count} {name}" for name, count in found.items())
    return f"No run has a score that compares ({len(table)} in all{': ' * bool(reasons)}{reasons})."


def best(cells: pd.DataFrame) -> Iterator[tuple[str, float, list[str]]]:
    """For each group its dense score and a phrase for each ratio."""
    for group, own in cells.groupby("group"):
        yield str(group), float(own.dense.mean()), [_leader(float(str(ratio)), rivals) for ratio, rivals in own.groupby("ratio")]


def _leader(ratio: float, rivals: pd.DataFrame) -> str:
    order = rivals[rivals.valid].sort_values(["score", "method"], ascending=[False, True])
    scores = [f"{row.method} ({row.score:.2f})" for row in order.itertuples()]
    if len(rivals) == 1:
        return f"at {ratio:g} only {rivals.method.iloc[0]} was run ({rivals.score.iloc[0]:.2f}{_verdict(rivals)})"
    if not scores:
        return f"at {ratio:g} all {len(rivals)} methods have collapsed or are suspect"
    if len(scores) == 1:
        return f"at {ratio:g} only {scores[0]} has neither collapsed nor is suspect"
    if order.wins.iloc[0]:
        return f"at {ratio:g} {order.method.iloc[0]} is best ({order.score.iloc[0]:.2f})"
    return f"at {ratio:g} none is ahead beyond noise; the highest are {scores[0]} and {scores[1]}"


def _verdict(rivals: pd.DataFrame) -> str:
    return "" if rivals.valid.iloc[0] else ", collapsed" if rivals.collapsed.iloc[0] else ", suspect"


def software(frame: Frame) -> list[dict[str, str]]:
    """Machines with the versions that ran there, and how often."""
    rows = pd.DataFrame([_versions(entry.record) for entry in frame.stored.values()])
    if rows.empty:
        return []
    return [dict(zip([*rows, "runs"], map(str, (*key, len(own))), strict=True)) for key, own in rows.groupby(list(rows))]


def _versions(record: Record) -> dict[str, str]:
    machine, software = record["machine"], record["software"]
    parts = [machine.get("gpu"), machine.get("cpu"), f"{machine['cores']} cores" if machine.get("cores") else None]
    parts += [f"{machine['ram_gib']} GiB" if machine.get("ram_gib") else None]
    names = ("python", "torch", "transformers", "prunebench")
    hardware = ", ".join(part for part in parts if part) or NONE
    system = ", ".join(part for part in (machine.get("os"), machine.get("driver")) if part) or NONE
    return {"machine": machine["name"], "hardware": hardware, "system": system, **{name: str(software[name] or NONE) for name in names}}
