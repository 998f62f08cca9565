"""A saved model's score and speed on this machine, beside the recorded ones: `python -m bench.measure DIR`."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from bench import command, machine
from bench.config import LatencyPlan, Task, typed
from bench.errors import UserError, nearest
from bench.files import CONF
from bench.records.reading import has_random_weights
from bench.records.schema import is_whole
from bench.records.table import number
from bench.stages import say
from bench.tasks import KINDS, data

if TYPE_CHECKING:
    from torch import nn

    from bench.saved.checkpoint import Saved

HELP = """python -m bench.measure DIR [key=value ...]   a saved model's score and speed on this machine
  device=auto|cpu|cuda  threads=N  latency.batch=N  latency.length=N
  The score is that of the task's whole evaluation split, found as in a run (BENCH_DATA, or the hub). The speed is
  compared with a dense model of the same config."""
HEADER = ["", "score", "speedup", "dense", "pruned", "batch", "length", "machine"]
DISPENSABLE = ["pruned", "dense", "length", "batch"]


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    folder: Path
    device: str
    threads: int
    batch: int | None
    length: int | None


def parse(words: Sequence[str]) -> Wanted:
    """The words of the command line.

    Raises:
        UserError: one of them cannot be read.
    """
    if not words:
        raise UserError("name the folder of a saved model; python -m bench.measure --help shows the rest")
    given: dict[str, str | int] = {"device": "auto"}
    kinds: dict[str, Callable[[str, str], str | int]] = {
        "device": _device,
        "threads": _number,
        "latency.batch": _number,
        "latency.length": _number,
    }
    for word in words[1:]:
        key, separator, value = word.partition("=")
        if not separator:
            raise UserError(f"cannot read {word!r}: write key=value; python -m bench.measure --help shows the keys")
        if key not in kinds:
            raise UserError(f"unknown key {key!r}{nearest(key, kinds)}")
        given[key] = kinds[key](key, value)
    threads, cores = int(given.get("threads") or machine.usable_cores()), os.cpu_count() or 1
    if threads > cores:
        raise UserError(f"threads={threads}: at most {cores} here")
    device = machine.resolve_device(str(given["device"]))
    sizes = [None if key not in given else int(given[key]) for key in ("latency.batch", "latency.length")]
    return Wanted(Path(words[0]), device, threads, *sizes)


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) >= 1):
        raise UserError(f"{key}={value}: a whole number, at least 1")
    return int(value)


def _device(key: str, value: str) -> str:
    known = ("auto", "cpu", "cuda")
    if value not in known:
        raise UserError(f"{key}={value}{nearest(value, known)}")
    return value


def measure(wanted: Wanted) -> list[list[str]]:
    """The rows of the table: what was recorded, and what is found now.

    Raises:
        UserError: the folder is no saved model, or what is asked for cannot be measured.
    """
    machine.settle(wanted.threads)
    from bench.saved import checkpoint
    from bench.speed import latency

    machine.hush()
    saved = checkpoint.read(wanted.folder)
    record = saved.record()
    recorded = _recorded(record)
    plan = _plan(wanted, saved)
    module = checkpoint.load(wanted.folder).to(wanted.device)
    facts = saved.facts
    say(f"{facts.method} on {facts.task_name} {facts.model}, {facts.unit} {facts.ratio:g}, seed {facts.seed}")
    score = "-"
    try:
        if not has_random_weights(record):
            score = _score(saved, record, module, wanted.device)
    except UserError as error:
        say(f"no score: {error}")
    dense = checkpoint.dense_module(saved).to(wanted.device)
    outputs = KINDS[facts.kind].output_names
    timed = latency.compare(dense, module, outputs, plan, saved.positions, wanted.device)["headline"]
    return [recorded, ["now", score, *_timing(timed), machine.machine_name(wanted.device)]]


def _plan(wanted: Wanted, saved: "Saved") -> LatencyPlan:
    """As latency=quick, at the point that is asked for."""
    plan = typed(LatencyPlan, OmegaConf.load(CONF / "latency" / "quick.yaml"), "latency")
    if wanted.length and wanted.length > saved.positions:
        raise UserError(f"latency.length={wanted.length}: the model has {saved.positions} positions")
    return replace(plan, batch=wanted.batch or plan.batch, length=wanted.length or plan.length)


def _score(saved: "Saved", record: dict[str, Any], module: "nn.Module", device: str) -> str:
    from bench.tasks import scoring
    from bench.tasks.encoding import Encoder

    task = _task(saved.facts.task_name, saved.facts.task)
    split = data.load(saved.facts.task_name, task).validation
    data.check_evaluation(saved.facts.task_name, split)
    if split.sha256 != (record.get("data") or {}).get("validation"):
        say(f"the evaluation split of {saved.facts.task_name} here is not the one of the record: the scores do not compare")
    encoder = Encoder(saved.folder, task, saved.facts.arch, saved.config)
    examples = encoder.examples(split, scored=True)
    found = scoring.measured(task, scoring.predict(module, encoder, scoring.everything(examples), device), examples)
    for note in found.notes:
        say(f"note: {note}")
    return number(found.score, ".2f")


def _task(name: str, task: Task) -> Task:
    """The saved task; code that builds its data is named by our own YAML of that name alone, never by the folder."""
    ours = CONF / "task" / f"{name}.yaml"
    if not ours.is_file():
        return task
    fields: Any = OmegaConf.load(ours)
    return replace(task, build=fields.get("build"))


def _recorded(record: dict[str, Any]) -> list[str]:
    if not is_whole(record):
        raise UserError("record.json is not the record of a run")
    score = number(record["pruned"]["score"], ".2f")
    return ["recorded", score, *_timing(record["latency"]["headline"]), record["machine"]["name"]]


def _timing(point: dict[str, Any] | None) -> list[str]:
    if not point:
        return ["-"] * 5
    speedup = f"{point['speedup']:.2f} [{point['low']:.2f}, {point['high']:.2f}]"
    times = [f"{point[f'{which}_ms']:.1f} ms" for which in ("dense", "pruned")]
    return [speedup, *times, str(point["batch"]), str(point["length"])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the saved model that is named; 1 where something is wrong, told in a sentence."""
    from bench.records.table import print_table

    return command.run(lambda words: print_table(measure(parse(words)), HEADER, DISPENSABLE, words=1), HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
