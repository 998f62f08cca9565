"""The protocol: one cell from dense checkpoint to record, the same for every method.

`PROTOCOL` is raised whenever something under bench/ changes what a run computes. torch is imported only when a run
starts, so that a stored result or an error never waits for it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.config import Run
from bench.data import TaskData
from bench.dense import Checkpoint
from bench.record import Record, dense_section, pruned_section, run_id
from bench.stages import collect, say, stage

if TYPE_CHECKING:
    from torch import nn

    from bench.masks import Masks

PROTOCOL = 1
MASK_ERROR_LIMIT = 1e-4  # of float32 logits, beyond which it is looked whether that is rounding
EXACT_ERROR_LIMIT = 1e-8  # of float64's


@dataclass(frozen=True)
class Done:
    """What a run leaves beside its record: the arrays that are stored with it, and what `save=` keeps."""

    arrays: dict[str, Any]
    small: "nn.Module"
    masks: "Masks"
    checkpoint: Checkpoint


def execute(run: Run, data: TaskData, checkpoint: Checkpoint | None, record: Record) -> Done:
    """Run one cell and fill its record section by section."""
    load = machine.load_per_core()
    machine.settle(run.threads)
    record["machine"] = machine.describe(run.device, run.threads, load)

    from bench import pruning

    method = pruning.instantiate(run)  # its fields are checked here, before the slower imports

    from bench import calibration, encoding, finetune, latency, latency_table, limits, rounding, score, shrink

    machine.hush()
    with collect() as seconds:
        # 1. Dense: found or fine-tuned, scored once per content.
        with stage("dense"):
            checkpoint = checkpoint or finetune.make(run, data)
            dense = score.load_dense(run, checkpoint)
            encoder = encoding.Encoder(checkpoint.folder, run.task, run.model.arch)
            latency.check(run.keys.latency, encoder.positions)
            validation = encoder.examples(data.validation)
            before = score.dense_score(run, dense, checkpoint, encoder, validation) if run.scored else None
        table = latency_table.find(run, checkpoint, dense, encoder.positions)  # None unless unit=latency
        record["id"] = run_id(run, checkpoint.sha256, PROTOCOL, table)
        record["latency"]["table"] = table and table.section()
        budget = latency_table.budget(run, dense.shape, table)
        record["dense"] = dense_section(run, checkpoint, dense, before)
        say(f"dense {run.task.score} {before.score:.2f}" if before else "random weights: only what they cost is measured")

        # 2. Calibration: the same examples for every method, drawn from train.
        sample = calibration.draw(run.keys.calibration, run.task, encoder.examples(data.train), encoder, run.keys.seed, run.device)
        record["calibration"] |= {"examples": sample.examples, "tokens": sample.tokens, "sha256": sample.sha256}

        # 3. Prune: timed from a cold model to final masks and weights.
        if run.keys.precision == "bf16" and not machine.has_bf16(run.device):
            say("this machine has no bf16 units: precision=bf16 will be slower than fp32")
        say(f"pruning with {run.method} on {sample.examples} examples, {sample.tokens} tokens")
        pruned = pruning.prune(method, dense, sample, budget, run.keys.precision)
        record["prune"] = pruned.cost
        seconds["prune"] = pruned.cost["seconds"]
        if table:
            record["latency"]["table"]["kept"] = budget.cost(pruned.masks) / budget.total

        # 4. Shrink: the pruned units are really gone, and the smaller model is the masked one.
        with stage("shrink"):
            masks = rounding.rounded(pruned.model, pruned.masks, run.keys.round_to or 1)
            small = shrink.shrink(pruned.model, masks)
            error = shrink.mask_error(pruned.model, masks, small, sample.batches[:2])
        record["pruned"] |= pruned_section(run, dense, masks, small) | {"mask_error": error}
        if not error < MASK_ERROR_LIMIT:
            exact = shrink.exact_mask_error(pruned.model, masks, small, sample.batches[:2])
            if not exact < EXACT_ERROR_LIMIT:
                raise ValueError(f"masked and shrunk model differ by {error:.3g} in their logits, by {exact:.3g} in float64")
            record["prune"]["notes"].append(f"masked and shrunk logits differ by {error:.2g}: rounding, {exact:.2g} in float64")

        # 5. Score the shrunk model, never the masked one, on the whole evaluation split.
        with stage("score"):
            after = score.score(run, small, encoder, validation) if run.scored else None
        if after:
            record["pruned"] |= {"score": after.score, "metrics": after.metrics}

        # 6. Latency: dense and shrunk in strict alternation, and why it is what it is.
        with stage("latency"):
            plan, positions = run.keys.latency, encoder.positions
            record["latency"] |= latency.compare(dense.module, small, plan, positions, run.device)
            if plan.limits and record["latency"]["headline"]:
                headline = record["latency"]["headline"]["speedup"]
                record["latency"]["limits"] = limits.explain(dense, masks, small, plan, positions, run.device, headline)
            if run.keys.round_to and record["latency"]["headline"]:
                unrounded = shrink.shrink(pruned.model, pruned.masks)
                effect = limits.effect_of_rounding(unrounded, small, plan, positions, run.device)
                record["latency"]["rounding"] = {"to": run.keys.round_to, **effect}
        record["seconds"] |= seconds
    arrays = score.arrays(before, after, data.validation) | {"heads": masks.heads, "neurons": masks.neurons}
    return Done(arrays, small, masks, checkpoint)
