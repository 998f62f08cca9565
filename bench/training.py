"""Training on the whole train split by transformers' Trainer, which goes on where it stopped, whatever stopped it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from bench.config import ModelTuning, Run, Task
from bench.files import cache_folder, keep_file
from bench.machine import repeatable
from bench.model import PrunableModel
from bench.nn.packing import Batch
from bench.records.identity import method_source
from bench.records.record import data_section
from bench.tasks import KINDS, scoring
from bench.tasks.data import TaskData
from bench.tasks.encoding import Encoded, Encoder, Examples
from bench.tasks.losses import objective
from bench.train import order, processes, trainer
from bench.train.resuming import Workplace, last_checkpoint

Group = dict[str, Any]  # of an optimiser: params, lr, weight_decay


@dataclass(frozen=True)
class Fit:
    """One training: what is trained, for how many steps (updates), on what, and how the rate goes.

    `groups`: the optimiser's (AdamW), everything else is frozen; `loss(module, batch)`: the mean over a batch;
    `before(step)` is called before every update, counted from 0, and `rate(step)` is the factor of the learning rates.
    """

    steps: int
    groups: Sequence[Group]
    loss: Callable[[nn.Module, Batch], Tensor]
    rate: Callable[[int], float]
    before: Callable[[int], None] = lambda step: None
    label: str = "training"


def linear(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """The factor of the learning rate: up over `warmup` steps, then down to 0 at the last, both linearly."""
    return lambda step: step / warmup if step < warmup else (steps - step) / max(1, steps - warmup)


def cubic(step: int, steps: int, last: float, first: float = 1.0) -> float:
    """From `first` at step 0 to `last` at `steps` and after, by the cubic of Zhu and Gupta (2017, arXiv 1710.01878)."""
    return last + (first - last) * (1 - min(step / steps, 1.0)) ** 3 if steps > 0 else last


@dataclass
class Training:
    """The whole train split, with labels, for a method that trains, and the place where its run keeps checkpoints.

    `task` and `recipe` say what is asked for and how this model is usually fine-tuned; `base` is the folder that the model
    before fine-tuning comes from, `encoder` its tokenizer; `teacher` is the dense model; `seed` is the run's. A method may call
    `fit` several times; each goes on where it was interrupted.
    """

    task: Task
    recipe: ModelTuning
    encoder: Encoder
    base: Path
    train: Examples
    teacher: PrunableModel
    work: Workplace
    seed: int
    device: str = "cpu"
    bf16: bool = False
    accumulate: int = 1
    task_name: str = ""
    embeddings: str = ""
    fits: int = 0

    @staticmethod
    def of(run: Run, data: TaskData, run_id: str, base: Path, encoder: Encoder, train: Examples, teacher: PrunableModel) -> "Training":
        """What the method of a run, or the retraining after it, trains on; an interrupted run finds its checkpoints again."""
        content = json.dumps([run_id, method_source(run.method_target), data_section(data)], sort_keys=True)
        return Training(
            task=run.task,
            recipe=run.model.tuning,
            encoder=encoder,
            base=base,
            train=train,
            teacher=teacher,
            work=Workplace(cache_folder() / "training" / hashlib.sha256(content.encode()).hexdigest()[:32]),
            seed=run.keys.seed,
            device=run.device,
            bf16=run.keys.precision == "bf16",
            accumulate=run.keys.accumulate,
            task_name=run.task_name,
            embeddings=run.model.arch.embeddings,
        )

    @cached_property
    def examples(self) -> list[Encoded]:
        """The examples of train (of questions every window) that the recipe reads, tokenised, with their labels."""
        return order.labelled(self.train, self.task, self.recipe)

    def taught(self) -> list[Encoded]:
        """The examples with the teacher's logits of each, computed once: it is in eval mode, so they stay the same."""
        kept = self.work.folder / "teacher.npy"
        if not kept.exists():
            found = scoring.predict(self.teacher.module, self.encoder, self.examples, self.device)
            keep_file(kept, lambda out: np.save(out, found))
        logits = np.load(kept, allow_pickle=False)
        return [{**example, "teacher": one} for example, one in zip(self.examples, logits, strict=True)]

    def of_embeddings(self, module: nn.Module) -> set[str]:
        """The names of the embeddings' parameters, their norm included."""
        return {name for name, _ in module.named_parameters() if name.startswith(f"{self.embeddings}.")}

    def steps(self, epochs: float, batch: int | None = None) -> int:
        """Updates in so many epochs."""
        return order.updates(len(self.examples), batch or self.recipe.batch, epochs)

    def task_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The task's mean loss, or half of it and half of the teacher's where the batch holds its logits."""
        kind = KINDS[self.task.kind]
        return objective(kind.logits(module, batch), batch["labels"], batch.get("teacher"), kind)

    def fit(self, module: nn.Module, plan: Fit, distil: bool = False, batch: int | None = None) -> None:
        """Train `module` in place; at the end it is in eval mode and asks for no gradients.

        Raises:
            ValueError: it has diverged.
        """
        self.work.claim()
        self.fits += 1
        work = self.work.folder / str(self.fits)
        module.requires_grad_(False)
        for group in plan.groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(list(plan.groups), eps=1e-8, weight_decay=0.0, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.rate)
        looped = trainer.Looped(
            module,
            self._arguments(plan.steps, batch or self.recipe.batch, work),
            order.Drawn(self.taught() if distil else self.examples, plan.steps, batch or self.recipe.batch, self.seed),
            lambda examples: order.collate(self.encoder, examples),
            plan.loss,
            [trainer.Before(plan.before), trainer.Bar(plan.steps, plan.label), trainer.Clock(self.work.write_seconds)],
            (optimizer, scheduler),
        )
        with repeatable(self.device), torch.enable_grad():
            looped.train(resume_from_checkpoint=last_checkpoint(work))
        trainer.released(module).eval().requires_grad_(False)
        module.zero_grad()
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise ValueError(f"{plan.label}: numbers that are not finite after {plan.steps} updates, a lower learning rate may help")

    def _arguments(self, steps: int, batch: int, work: Path) -> TrainingArguments:
        return trainer.arguments(
            work,
            steps,
            self.device,
            per_device_train_batch_size=processes.share(batch, self.accumulate),
            gradient_accumulation_steps=self.accumulate,
            bf16=self.bf16,
            seed=self.seed,
            train_sampling_strategy="sequential",
        )
