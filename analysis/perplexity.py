"""Language models by themselves: their score grows as it gets worse, and is compared by how many percent it grew."""

from typing import Any

import pandas as pd

from analysis.frame import Frame
from bench.records import verdict
from bench.records.reading import method_label, passes
from bench.records.store import Stored

ORDER = ["task", "model", "context", "sample", "unit", "ratio", "growth"]


def perplexity(frame: Frame) -> pd.DataFrame:
    """Perplexity dense and pruned, and the growth in percent with its paired 95 % interval over windows, one row for each run; the
    best of a cell stands first. `context`: tokens of a window; windows of other lengths are never compared."""
    rows = [_row(entry) for entry in frame.texts.values() if entry.record["status"] == "ok" and entry.record["pruned"]["score"]]
    return pd.DataFrame(rows).sort_values(ORDER, ignore_index=True) if rows else pd.DataFrame()


def _row(entry: Stored) -> dict[str, Any]:
    record, arrays = entry.record, entry.arrays()
    growth, low, high = verdict.growth(arrays)
    return {
        "task": record["task"],
        "model": record["model"],
        "context": int(arrays["predicted"][0]) + 1,
        "sample": record["calibration"]["tokens"] / 1000,
        "unit": record["unit"],
        "ratio": record["ratio"],
        "method": method_label(record),
        "seed": record["seed"],
        "perplexity_dense": record["dense"]["score"],
        "perplexity": record["pruned"]["score"],
        "growth": growth,
        "growth_low": low,
        "growth_high": high,
        "collapsed": verdict.is_collapsed("perplexity", arrays),
        "passes": passes(record),
        "speedup": (record["latency"]["headline"] or {}).get("speedup"),
    }
