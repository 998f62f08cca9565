"""The protocol: one cell from dense checkpoint to record, the same for every method.

`PROTOCOL` is raised whenever something under bench/ changes what a run computes. torch is imported only when a run
starts, so that a stored result or an error never waits for it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.config import Run
from bench.dense.finding import Checkpoint
from bench.method import Skip
from bench.records.record import dense_section, pruned_section, run_id
from bench.records.schema import Record
from bench.stages import collect, say, stage
from bench.tasks import KINDS
from bench.tasks.data import TaskData
from bench.train import processes

if TYPE_CHECKING:
    from torch import nn

    from bench.masks import Masks, WeightMasks

PROTOCOL = 1


@dataclass(frozen=True)
class Done:
    """What a run leaves beside its record: the arrays that are stored with it, what `save=` keeps, and the folder of a training's
    checkpoints, which nobody needs once the record is there."""

    arrays: dict[str, Any]
    small: "nn.Module"
    masks: "Masks"
    weights: "WeightMasks | None"
    checkpoint: Checkpoint
    training: Path | None


def execute(run: Run, data: TaskData, checkpoint: Checkpoint | None, record: Record) -> Done:
    """Run one cell and fill its record section by section."""
    load = machine.load_per_core()
    machine.settle(run.threads)
    record["machine"] = machine.describe(run.device, run.threads, load)

    from bench import pruning

    method = pruning.instantiate(run)  # its fields are checked here, before the slower imports

    from bench import calibration, training
    from bench.dense import finetune, loading, parent
    from bench.nn import rounding, shrink
    from bench.speed import bounds, latency, latency_table
    from bench.tasks import encoding, scoring
    from bench.train import recover

    machine.hush()
    with collect() as seconds:
        # 1. Dense: found or fine-tuned, scored once per content.
        with stage("dense"):
            base = finetune.base_folder(run) if run.scored and (run.pretrained or not checkpoint) else None
            if base and not checkpoint:
                method.ready(run.task, encoding.Encoder(base, run.task, run.model.arch).tokenizer)
            checkpoint = checkpoint or finetune.make(run, data)
            dense = loading.load(run, checkpoint)
            encoder = encoding.Encoder(checkpoint.folder, run.task, run.model.arch)
            latency.check(run.keys.latency, encoder.positions)
            validation = encoder.examples(data.validation)
            before = scoring.dense_score(run, dense, checkpoint, encoder, validation) if run.scored else None
        table = latency_table.find(run, checkpoint, dense, encoder.positions)  # None unless unit=latency
        record["id"] = run_id(run, checkpoint.sha256, PROTOCOL, table, record["dense"]["base"])
        record["latency"]["table"] = table and table.section()
        budget = latency_table.budget(run, dense, table)
        if table and not budget.fits(budget.least):
            most = 1 - budget.least / budget.total
            raise Skip(f"unit=latency: at ratio={budget.ratio:g} not one head and not one neuron can be paid here, at {most:.3f} one can")
        record["dense"] |= dense_section(run, checkpoint, dense, before)
        say(f"dense {run.task.score} {before.text}" if before else "random weights: only what they cost is measured")
        note(
            record["dense"],
            parent.notes(checkpoint, dense, before, run.task.score, scoring.arrays(run.task, before, None, data.validation)),
        )

        if (run.trains or run.recover) and not KINDS[run.task.kind].fine_tuned:
            raise Skip(f"{run.task_name} asks for a model as it is published: nothing is trained for it")
        if (method.labels or run.trains or run.recover) and not data.train.labelled:
            raise Skip(f"{'retraining' if run.recover else run.method} needs labels, and train has none")

        # 2. Calibration: the same examples for every method, drawn from train.
        train = encoder.examples(data.train)
        sample = calibration.draw(run.keys.calibration, run.task, train, encoder, run.keys.seed, run.device)
        cut = sum(int(row) in train.cut for row in sample.rows)
        record["calibration"] |= {"examples": sample.examples, "tokens": sample.tokens, "sha256": sample.sha256, "cut": cut}

        # A method that trains, or a retraining after it, gets the whole train split, and a folder for its checkpoints.
        trained, recovery = None, None
        start = finetune.pretrained(run, base, dense, encoder) if base and run.pretrained else None
        if run.trains or run.recover:
            begin = base if base and start else checkpoint.folder
            trained = training.prepare(run, begin, encoder, train, dense, record)
            recovery = recover.Recovery(run.keys.recover, trained, run.keys.round_to) if run.recover else None

        # 3. Prune: timed from a cold model to final masks and weights.
        if run.keys.precision == "bf16" and not machine.has_bf16(run.device):
            say("this machine has no bf16 units: precision=bf16 will be slower than fp32")
        say(f"pruning with {run.method} on {sample.examples} examples, {sample.tokens} tokens")
        seen = replace(sample, training=trained if run.trains else None)
        pruned = pruning.prune(method, dense, seen, budget, run.keys.precision, start, recovery)
        record["prune"] = pruned.cost
        seconds["prune"] = pruned.cost["seconds"]
        if table:
            record["latency"]["table"]["kept"] = budget.cost(pruned.masks) / budget.total
        if processes.rank():
            raise processes.Follower  # what follows is the first process's

        # 4. Shrink: the pruned units are really gone, and the smaller model is the masked one.
        with stage("shrink"):
            masks = rounding.rounded(pruned.model, pruned.masks, run.keys.round_to or 1)
            small = shrink.zeroed(pruned.model, pruned.weights) if pruned.weights else shrink.shrink(pruned.model, masks)
            error, notes = (None, []) if pruned.weights else shrink.verify(pruned.model, masks, small, sample.batches[:2])
        record["pruned"] |= pruned_section(run, dense, masks, small, pruned.weights) | {"mask_error": error}
        record["prune"]["notes"] += notes

        # 5. Score the shrunk model, never the masked one, on the whole evaluation split.
        with stage("score"):
            after = scoring.score(run, small, encoder, validation) if run.scored else None
        if after:
            record["pruned"] |= {"score": after.score, "metrics": after.metrics}
            note(record["pruned"], after.notes)
            record["data"]["cut"] = len(validation.cut)
        if told := encoding.told_cut({"calibration": (cut, sample.examples), "evaluation": (len(validation.cut), len(validation))}):
            say(told)

        # 6. Latency: dense and shrunk in strict alternation, and why it is what it is.
        with stage("latency"):
            plan, positions = run.keys.latency, encoder.positions
            record["latency"] |= latency.compare(dense.module, small, plan, positions, run.device)
            if pruned.weights and record["latency"]["headline"]:
                record["latency"]["notes"].append("single weights are zero in matrices as large as before: dense kernels skip nothing")
            elif plan.limits and record["latency"]["headline"]:
                headline = record["latency"]["headline"]["speedup"]
                record["latency"]["limits"] = bounds.explain(dense, masks, small, plan, positions, run.device, headline)
            if run.keys.round_to and record["latency"]["headline"]:
                unrounded = shrink.shrink(pruned.model, pruned.masks)
                effect = bounds.effect_of_rounding(unrounded, small, plan, positions, run.device)
                record["latency"]["rounding"] = {"to": run.keys.round_to, **effect}
        record["seconds"] |= seconds
    arrays = scoring.arrays(run.task, before, after, data.validation) | {"heads": masks.heads, "neurons": masks.neurons}
    return Done(arrays, small, masks, pruned.weights, checkpoint, trained.folder if trained else None)


def note(section: Record, notes: list[str]) -> None:
    """Add notes to a section of the record, and say them."""
    section["notes"] += notes
    for text in notes:
        say(f"note: {text}")
