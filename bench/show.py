"""Stored records as a table: `python -m bench.show results/`."""

import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

from bench import store
from bench.record import Record, has_random_weights, method_label, passes
from bench.stages import any_encoding
from bench.store import Stored


def row(record: Record) -> list[str]:
    """One record as the cells of the table."""
    dense, pruned, prune, timing = record["dense"], record["pruned"], record["prune"], record["latency"]["headline"]
    kept = pruned["params_kept"] if record["unit"] == "params" else pruned["flops_kept"]
    if record["unit"] == "weights" and pruned["weights_kept"] is not None:
        kept = pruned["weights_kept"]
    if record["unit"] == "latency":
        kept = (record["latency"].get("table") or {}).get("kept")
    ok = record["status"] == "ok"
    return [
        method_label(record) + f" {record['precision']}" * (record["precision"] != "fp32"),
        f"{record['task']} {record['model']}" + " (random)" * has_random_weights(record),
        f"{record['ratio']:g}" + ("" if record["unit"] == "flops" else f" {record['unit']}"),
        str(record["seed"]),
        number(dense["score"], ".2f"),
        number(pruned["score"], ".2f") if ok else record["status"],
        number(kept and 100 * kept, ".1f", " %"),
        number(prune["seconds"], ".1f", " s"),
        _passes(record),
        f"{timing['speedup']:.2f} [{timing['low']:.2f}, {timing['high']:.2f}]" if timing else "-",
    ]


HEADER = ["method", "task, model", "ratio", "seed", "dense", "pruned", "kept", "pruning", "passes", "speedup"]
DOUBT = " ?"  # behind passes beside which something else ran
DISPENSABLE = ["passes", "kept", "seed", "dense"]  # in this order, where a terminal is narrow


def cost_row(record: Record) -> list[str]:
    """What pruning cost, for one record: a pass, seconds, seconds by stage, peak memory."""
    prune = record["prune"]
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in (prune["stages"] or {}).items())
    return [
        method_label(record),
        f"{record['task']} {record['model']}",
        f"{record['ratio']:g}",
        str(record["calibration"]["tokens"] or "-"),
        record["precision"],
        _passes(record),
        number(prune["pass_seconds"], ".1f", " s"),
        number(prune["seconds"], ".1f", " s"),
        number(prune["peak_bytes"] and prune["peak_bytes"] / 1e6, ".0f", " MB"),
        stages,
    ]


COST_HEADER = ["method", "task, model", "ratio", "tokens", "precision", "passes", "a pass", "pruning", "peak", "seconds by stage"]
COST_DISPENSABLE = ["precision", "tokens", "ratio", "a pass"]


def speed_rows(record: Record) -> list[list[str]]:
    """What was timed, for one record: a row for every point; for the headline also what limits it (docs/protocol.md)."""
    timing, rows = record["latency"], []
    for i, point in enumerate(timing["grid"]):
        limits = (timing.get("limits") or {}) if i == 0 else {}
        launch = limits.get("launch_share")
        native = (limits.get("native_over_pruned") or {}).get("speedup")
        rows.append(
            [
                record["method"]["name"],
                f"{record['model']}" + " (random)" * has_random_weights(record),
                f"{record['ratio']:g}",
                f"{point['batch']} x {point['length']}",
                f"{point['dtype']} {point['mode']}",
                number(point["dense_ms"], ".1f", " ms"),
                number(point["pruned_ms"], ".1f", " ms"),
                f"{point['speedup']:.2f} [{point['low']:.2f}, {point['high']:.2f}]" if point["speedup"] else point.get("note") or "-",
                number(limits.get("flops_bound"), ".2f"),
                number(limits.get("bound_with_fixed"), ".2f"),
                number(native, ".2f"),
                number(launch and 100 * launch, ".0f", " %"),
            ]
        )
    return rows


SPEED_HEADER = ["method", "model", "ratio", "batch", "as", "dense", "pruned", "speedup", "FLOPs", "+ fixed", "native", "launch"]
SPEED_DISPENSABLE = ["dense", "pruned", "FLOPs", "launch"]


def _passes(record: Record) -> str:
    """What pruning cost in passes, marked where the ratio cannot be trusted."""
    return number(record["prune"]["passes"], ".2f") + DOUBT * (record["prune"]["passes"] is not None and passes(record) is None)


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number for people; - where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def print_table(rows: list[list[str]], header: list[str], dispensable: list[str], words: int = 2) -> None:
    """A table that fits the terminal. What does not fit is left out, and told; without a terminal nothing is.
    The first columns are `words`, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    width = _terminal() or max(100, sum(widths) + 2 * len(widths))
    shown, left_out = list(range(len(header))), []
    for name in dispensable:
        if sum(widths[i] + 2 for i in shown) <= width:
            break
        shown.remove(header.index(name))
        left_out.append(name)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for i in shown:
        table.add_column(header[i], justify="left" if i < words else "right", overflow="fold")
    for cells in rows:
        table.add_row(*(cells[i] for i in shown))
    Console(width=width, highlight=False, markup=False).print(table)
    if any(cells[i].endswith(DOUBT) for cells in rows for i in shown):
        print(f"{DOUBT.strip()} the machine had other work too: what pruning cost cannot be trusted")
    if left_out:
        print(f"left out, this terminal is narrow: {', '.join(left_out)}")


def _terminal() -> int | None:
    """The terminal's width, where there is one."""
    limited = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return max(40, shutil.get_terminal_size().columns) if limited else None


def show(stored: list[Stored]) -> None:
    """Print records as the table of results."""
    print_table([row(entry.record) for entry in stored], HEADER, DISPENSABLE)
    if len(stored) == 1 and (limits := stored[0].record["latency"].get("limits")):
        print(textwrap.fill(f"what limits the speedup: {limits['verdict']}", min(100, _terminal() or 100)))
    reasons = {(entry.record["method"]["name"], last_line(entry.record["reason"])) for entry in stored if entry.record["reason"]}
    for name, reason in sorted(reasons):
        print(f"{name}: {reason}")


def last_line(reason: str | None) -> str:
    """Of a traceback the first line of the error itself, of a sentence the sentence."""
    lines = (reason or "").strip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith("  ")]
    return next(iter(lines[frames[-1] + 1 :] if frames else lines), "")


def main(arguments: list[str] | None = None) -> int:
    """Print the records under the folders that are named; 1 where a folder or every record is missing."""
    any_encoding()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    words = sys.argv[1:] if arguments is None else arguments
    costs, speeds = "--pruning" in words, "--speed" in words
    words = [word for word in words if word not in ("--pruning", "--speed")]
    if "-h" in words or "--help" in words:
        print("python -m bench.show [--pruning | --speed] [FOLDER ...]   stored records as a table (default: results)")
        print("  --pruning   what pruning cost: passes, seconds by stage, peak memory")
        print("  --speed     what was timed: every point; the speedup that FLOPs and fixed work allow; native over shrunk")
        return 0
    found: list[Stored] = []
    for folder in map(Path, words or [os.environ.get("BENCH_RESULTS", "results")]):
        if not folder.is_dir():
            print(f"{folder} is not a folder with records", file=sys.stderr)
            return 1
        loaded = store.load(folder)
        found += loaded.records
        for broken in loaded.broken:
            print(f"passed over, not a whole record of this schema: {broken}", file=sys.stderr)
        if loaded.superseded:
            print(f"{folder}: {loaded.superseded} older records of the same runs are not shown", file=sys.stderr)
    if not found:
        print("no records here yet; python -m bench makes the first", file=sys.stderr)
        return 1
    machines = sorted({entry.record["machine"]["name"] for entry in found})
    for name in machines:  # timings of different machines never share a table
        print(f"machine {name}")
        here = sorted((entry for entry in found if entry.record["machine"]["name"] == name), key=_order)
        if speeds:
            print_table([cells for entry in here for cells in speed_rows(entry.record)], SPEED_HEADER, SPEED_DISPENSABLE)
        elif costs:
            print_table([cost_row(entry.record) for entry in here], COST_HEADER, COST_DISPENSABLE)
        else:
            show(here)
    return 0


def _order(entry: Stored) -> tuple[Any, ...]:
    record = entry.record
    return record["task"], record["model"], record["unit"], record["ratio"], record["method"]["name"], record["seed"]


if __name__ == "__main__":
    sys.exit(main())
