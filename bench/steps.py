"""The steps of the protocol that bench/run.py reads aloud: what each of them does, and what it gives to the next ones."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from bench import calibration, machine, pruning
from bench.budget import Budget
from bench.calibration import Calibration
from bench.config import Run
from bench.dense import finetune, loading, parent
from bench.dense.finding import Checkpoint
from bench.masks import Masks
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn import rounding
from bench.nn import shrink as shrinking
from bench.pruning import Pruning
from bench.records import record
from bench.records.schema import Record
from bench.speed import bounds, latency, latency_table
from bench.speed.latency_table import Table
from bench.stages import say, stage
from bench.tasks import KINDS, encoding, scoring
from bench.tasks.data import TaskData
from bench.tasks.encoding import Encoder, Examples
from bench.tasks.kind import Score
from bench.train import recover
from bench.training import Training

VERIFIED = 2  # batches on which the shrunk model has to equal the masked one


@dataclass(frozen=True)
class Dense:
    """What step 1 makes.

    `base`: the folder of the base encoder, where the method starts from it; `score`: None where nothing is scored; `table`: the latency
    table, None unless unit=latency.
    """

    base: Path | None
    checkpoint: Checkpoint
    model: PrunableModel
    encoder: Encoder
    validation: Examples
    score: Score | None
    table: Table | None
    budget: Budget


@dataclass(frozen=True)
class Drawn:
    """What step 2 draws: the calibration sample, from the examples of train."""

    train: Examples
    sample: Calibration

    @property
    def cut(self) -> int:
        """How many examples of the sample were too long and cut."""
        return sum(int(row) in self.train.cut for row in self.sample.rows)

    def section(self) -> Record:
        """For the record's `calibration`."""
        return {"examples": self.sample.examples, "tokens": self.sample.tokens, "sha256": self.sample.sha256, "cut": self.cut}


@dataclass(frozen=True)
class Small:
    """What step 4 makes: the shrunk model, and the masks that it has, rounded where that is asked for. `error`: how far its logits are
    from the masked model's, None where single weights were pruned."""

    module: nn.Module
    masks: Masks
    error: float | None
    notes: list[str]


def prepare(run: Run, data: TaskData, checkpoint: Checkpoint | None, table: Table | None) -> Dense:
    """Step 1: the dense model and its score, and the budget. `checkpoint` and `table` are made here unless they are there already."""
    with stage("dense"):
        base = finetune.base_folder(run) if run.scored and run.pretrained else None
        checkpoint = checkpoint or finetune.make(run, data)
        dense = loading.load(run, checkpoint)
        encoder = Encoder(checkpoint.folder, run.task, run.model.arch)
        latency.check(run.keys.latency, encoder.positions)
        validation = encoder.examples(data.validation, scored=True)
        score = scoring.dense_score(run, dense, checkpoint, encoder, validation) if run.scored else None
    table = table or latency_table.find(run, checkpoint, dense, encoder.positions)
    return Dense(base, checkpoint, dense, encoder, validation, score, table, latency_table.budget(run, dense, table))


def dense_section(run: Run, data: TaskData, dense: Dense) -> Record:
    """The record's `dense`, with what a reader should know of the dense model."""
    say(f"dense {run.task.score} {dense.score.text}" if dense.score else "random weights: only what they cost is measured")
    answers = scoring.arrays(run.task, dense.score, None, dense.validation)
    notes = parent.notes(dense.checkpoint, dense.model, dense.score, run.task.score, answers)
    return record.dense_section(run, dense.checkpoint, dense.model, dense.score) | {"notes": _said(notes)}


def refuse(run: Run, data: TaskData, method: Method, dense: Dense) -> None:
    """Raise Skip where this cell cannot be done, whatever the method computes."""
    budget = dense.budget
    if dense.table and not budget.fits(budget.least):
        most = 1 - budget.least / budget.total
        raise Skip(f"unit=latency: at ratio={budget.ratio:g} not one head and not one neuron can be paid here, at {most:.3f} one can")
    if (run.trains or run.recover) and not KINDS[run.task.kind].fine_tuned:
        raise Skip(f"{run.task_name} asks for a model as it is published: nothing is trained for it")
    if (method.labels or run.trains or run.recover) and not data.train.labelled:
        raise Skip(f"{'retraining' if run.recover else run.method} needs labels, and train has none")


def calibrate(run: Run, data: TaskData, dense: Dense) -> Drawn:
    """Step 2: the calibration sample of the task and seed."""
    train = dense.encoder.examples(data.train)
    return Drawn(train, calibration.draw(run.keys.calibration, run.task, train, dense.encoder, run.keys.seed, run.device))


def training_of(run: Run, data: TaskData, dense: Dense, drawn: Drawn, run_id: str) -> Training | None:
    """The whole train split and a folder for checkpoints, where the method trains or what it leaves is retrained."""
    if not (run.trains or run.recover):
        return None
    return Training.of(run, data, run_id, dense.base or dense.checkpoint.folder, dense.encoder, drawn.train, dense.model)


def prune(run: Run, method: Method, dense: Dense, drawn: Drawn, training: Training | None) -> Pruning:
    """Step 3: the method at work, timed."""
    sample = drawn.sample
    if run.keys.precision == "bf16" and not machine.has_bf16(run.device):
        say("this machine has no bf16 units: precision=bf16 will be slower than fp32")
    say(f"pruning with {run.method} on {sample.examples} examples, {sample.tokens} tokens")
    start = finetune.pretrained(run, dense.base, dense.model, dense.encoder) if dense.base else None
    recovery = recover.Recovery(run.keys.recover, training, run.keys.round_to) if training and run.recover else None
    seen = replace(sample, training=training if run.trains else None)
    return pruning.prune(method, dense.model, seen, dense.budget, run.keys.precision, start, recovery)


def shrink(run: Run, drawn: Drawn, pruned: Pruning) -> Small:
    """Step 4: the pruned units are really gone, and the smaller model is the masked one."""
    with stage("shrink"):
        masks = rounding.rounded(pruned.model, pruned.masks, run.keys.round_to or 1)
        if pruned.weights:
            return Small(shrinking.zeroed(pruned.model, pruned.weights), masks, None, [])
        small = shrinking.shrink(pruned.model, masks)
        return Small(small, masks, *shrinking.verify(pruned.model, masks, small, drawn.sample.batches[:VERIFIED]))


def pruned_section(run: Run, dense: Dense, pruned: Pruning, small: Small) -> Record:
    """The record's `pruned` before it is scored."""
    return record.pruned_section(run, dense.model, small.masks, small.module, pruned.weights) | {"mask_error": small.error}


def score(run: Run, dense: Dense, drawn: Drawn, small: Small) -> Score | None:
    """Step 5: the shrunk model's score on the whole evaluation split."""
    with stage("score"):
        found = scoring.score(run, small.module, dense.encoder, dense.validation) if run.scored else None
    evaluation = len(dense.validation.cut), len(dense.validation)
    if told := encoding.told_cut({"calibration": (drawn.cut, drawn.sample.examples), "evaluation": evaluation}):
        say(told)
    return found


def score_section(score: Score | None) -> Record:
    """The part of the record's `pruned` that the score fills in."""
    if score is None:
        return {}
    return {"score": score.score, "metrics": score.metrics, "notes": _said(score.notes)}


def time(run: Run, dense: Dense, pruned: Pruning, small: Small) -> Record:
    """Step 6: the record's `latency`: dense and shrunk in alternation, and why the speedup is what it is."""
    plan, positions = run.keys.latency, dense.encoder.positions
    with stage("latency"):
        outputs = dense.model.kind.output_names
        section = latency.compare(dense.model.module, small.module, outputs, plan, positions, run.device)
        headline = section["headline"]
        if not headline:
            return section
        if pruned.weights:
            section["notes"].append("single weights are zero in matrices as large as before: dense kernels skip nothing")
        elif plan.limits:
            limits = bounds.explain(dense.model, small.masks, small.module, plan, positions, run.device, headline["speedup"])
            section["limits"] = limits
        if run.keys.round_to:
            unrounded = shrinking.shrink(pruned.model, pruned.masks)
            effect = bounds.effect_of_rounding(unrounded, small.module, plan, positions, run.device)
            section["rounding"] = {"to": run.keys.round_to, **effect}
    return section


def data_section(run: Run, dense: Dense, after: Score | None) -> Record:
    """For the record's `data`: how many examples were cut, and how a text was that is read as one."""
    stream = KINDS[run.task.kind].stream(dense.validation)
    return {"cut": len(dense.validation.cut) if after else None, **({"stream": stream} if stream else {})}


def arrays(run: Run, data: TaskData, dense: Dense, small: Small, after: Score | None) -> dict[str, object]:
    """What is stored of every example and of the masks."""
    answers = scoring.arrays(run.task, dense.score, after, dense.validation)
    return {**answers, "heads": small.masks.heads, "neurons": small.masks.neurons}


def _said(notes: list[str]) -> list[str]:
    """Notes that have been said to whoever waits."""
    for text in notes:
        say(f"note: {text}")
    return notes
