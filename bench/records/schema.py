"""Which parsed JSON is a record: whatever its readers rely on is there, and of its kind."""

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any

SCHEMA = 1
Record = dict[str, Any]
STATUSES = ("ok", "skipped", "failed")
PLANS = ("none", "quick", "paper")  # of latency, each holding what the one before it holds
Kinds = Mapping[str, tuple[type, ...]]
TEXT, NUMBER, OBJECT = (str, NoneType), (int, float, NoneType), (dict, NoneType)
INSIDE: Mapping[str, Kinds] = {
    "method": {"name": (str,)},
    "machine": {"name": (str,), "threads": (int,)},
    "recover": {"epochs": (int, float), "distil": (bool,), "rounds": (int,)},
    "data": dict.fromkeys(("train", "validation", "source"), TEXT),
    "calibration": {"sampler": TEXT, **dict.fromkeys(("examples", "tokens", "batch"), (int, NoneType)), "sha256": TEXT},
    "dense": {"score": NUMBER, "metrics": OBJECT, "flops": NUMBER, "params": NUMBER, "checkpoint": OBJECT, "expected": NUMBER},
    "pruned": {
        "score": NUMBER,
        "metrics": OBJECT,
        **dict.fromkeys(("flops", "params", "flops_kept", "params_kept", "weights_kept"), NUMBER),
        **dict.fromkeys(("heads", "neurons"), (list, NoneType)),
        "mask_error": NUMBER,
    },  # and of weights' masks
    "prune": {"seconds": NUMBER, "stages": OBJECT, **dict.fromkeys(("peak_bytes", "pass_seconds", "passes"), NUMBER), "notes": (list,)},
    "latency": {"plan": (str,), "headline": OBJECT, "grid": (list,), "notes": (list,)},  # and table, null but for unit=latency
    "seconds": dict.fromkeys(("total", "dense", "prune", "shrink", "score", "latency"), NUMBER),
    "software": {
        **dict.fromkeys(("python", "torch", "transformers", "prunebench", "commit"), TEXT),
        "dirty": (bool, NoneType),
        "method_source": TEXT,
    },
}
RECORD: Kinds = {
    **dict.fromkeys(("id", "created", "command", "task", "model", "unit", "device", "precision"), (str,)),
    **dict.fromkeys(("reason", "attention"), TEXT),
    "ratio": (int, float),
    "seed": (int,),
    **dict.fromkeys(INSIDE, (dict,)),
    "recover": OBJECT,
}
POINT: Kinds = {
    **dict.fromkeys(("batch", "length"), (int,)),
    **dict.fromkeys(("dtype", "mode"), (str,)),
    **dict.fromkeys(("speedup", "low", "high", "dense_ms", "pruned_ms"), NUMBER),
}
TABLES = ("limits", "table", "rounding")  # of latency: objects where they are there


def is_whole(found: Any) -> bool:
    """Whether it is a record of this schema that every reader can rely on."""
    if not _of(found, RECORD) or found.get("schema") != SCHEMA or found.get("status") not in STATUSES:
        return False
    sections = [(found[name], kinds) for name, kinds in INSIDE.items() if found[name] is not None]
    if not all(_of(section, kinds) for section, kinds in sections):
        return False
    timing, numbers = found["latency"], [found["dense"]["metrics"], found["pruned"]["metrics"], found["prune"]["stages"]]
    points = timing["grid"] + [timing["headline"]] * (timing["headline"] is not None)
    return (
        0 <= found["ratio"] < 1
        and 0 <= found["seed"] < 2**63
        and timing["plan"] in PLANS
        and all(_of(point, POINT) for point in points)
        and (timing["headline"] is None or all(timing["headline"][key] is not None for key in ("speedup", "low", "high")))
        and all(timing.get(name) is None or isinstance(timing[name], dict) for name in TABLES)
        and all(isinstance(notes, list) and all(isinstance(note, str) for note in notes) for notes in _notes(found))
        and all(_is(value, NUMBER) for values in numbers for value in (values or {}).values())
        and all(_is(units, (int,)) for kind in ("heads", "neurons") for units in found["pruned"][kind] or ())
        and _is(found["machine"].get("load"), NUMBER)
        and _is(found.get("round_to"), (int, NoneType))  # a later key, as these are and some of the machine's and of latency's
        and _is(found["prune"].get("other_work"), NUMBER)
        and _is(timing.get("positions"), (int, NoneType))
    )


def _notes(found: Any) -> list[Any]:
    """Every list of notes; those of the dense and of the pruned model are later keys."""
    return [found["prune"]["notes"], found["latency"]["notes"], *(found[name].get("notes", []) for name in ("dense", "pruned"))]


def _of(found: Any, kinds: Kinds) -> bool:
    """Whether it is an object with all these keys, each of one of its kinds."""
    return isinstance(found, dict) and all(key in found and _is(found[key], kind) for key, kind in kinds.items())


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    """A bool is no number, and a number is finite."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))
