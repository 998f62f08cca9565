"""The protocol: one cell from dense checkpoint to record, the same for every method.

`PROTOCOL` is raised whenever something under bench/ changes what a run computes. torch is imported only when a run
starts, so that a stored result or an error never waits for it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.config import Run
from bench.dense.finding import Checkpoint
from bench.records.record import run_id
from bench.records.schema import Record
from bench.stages import collect
from bench.tasks.data import TaskData
from bench.train import processes

if TYPE_CHECKING:
    from torch import nn

    from bench.masks import Masks, WeightMasks
    from bench.speed.latency_table import Table

PROTOCOL = 1


@dataclass(frozen=True)
class Known:
    """What is known of a run before torch is imported: its dense checkpoint and latency table, where they are there already, what the
    base encoder is that its method starts from, and the run's id, where nothing that it depends on is missing."""

    checkpoint: Checkpoint | None
    table: "Table | None"
    base: Any
    id: str | None


@dataclass(frozen=True)
class Done:
    """What a run leaves beside its record: its id, the arrays that are stored with it, what `save=` keeps, and the folder of a
    training's checkpoints, which nobody needs once the record is there."""

    id: str
    arrays: dict[str, Any]
    small: "nn.Module"
    masks: "Masks"
    weights: "WeightMasks | None"
    checkpoint: Checkpoint
    training: Path | None


def execute(run: Run, data: TaskData, known: Known, record: Record) -> Done:
    """Run one cell and fill its record section by section, which is written here and never read."""
    record["machine"] |= machine.settled(run.device, run.threads)
    from bench import pruning

    method = pruning.instantiate(run)  # its fields are checked here, before the slower imports
    from bench import steps

    machine.hush()
    with collect() as seconds:
        # 1. Dense: found or fine-tuned, scored once per content.
        dense = steps.prepare(run, data, known.checkpoint, known.table)
        own = record["id"] = known.id or run_id(run, dense.checkpoint.sha256, PROTOCOL, dense.table, known.base)
        record["latency"]["table"] = dense.table and dense.table.section()
        record["dense"] |= steps.dense_section(run, data, dense)
        steps.refuse(run, data, method, dense)
        # 2. Calibration: the same examples for every method, drawn from train.
        drawn = steps.calibrate(run, data, dense)
        record["calibration"] |= drawn.section()
        # 3. Prune: timed from a cold model to final masks and weights.
        training = steps.training_of(run, data, dense, drawn, own)
        pruned = steps.prune(run, method, dense, drawn, training)
        if processes.rank():
            raise processes.Follower  # what follows is the first process's
        record["prune"], seconds["prune"] = pruned.cost, pruned.cost["seconds"]
        if dense.table:
            record["latency"]["table"]["kept"] = dense.budget.cost(pruned.masks) / dense.budget.total
        # 4. Shrink: the pruned units are really gone, and the smaller model is the masked one.
        small = steps.shrink(run, drawn, pruned)
        record["pruned"] |= steps.pruned_section(run, dense, pruned, small)
        record["prune"]["notes"] += small.notes
        # 5. Score the shrunk model, never the masked one, on the whole evaluation split.
        after = steps.score(run, dense, drawn, small)
        record["pruned"] |= steps.score_section(after)
        record["data"] |= steps.data_section(run, dense, after)
        # 6. Latency: dense and shrunk in strict alternation, and why it is what it is.
        record["latency"] |= steps.time(run, dense, pruned, small)
        record["seconds"] |= seconds
    arrays = steps.arrays(run, data, dense, small, after)
    return Done(own, arrays, small.module, small.masks, pruned.weights, dense.checkpoint, training.work.folder if training else None)
