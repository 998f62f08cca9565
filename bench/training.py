"""Training on the whole train split by transformers' Trainer, which goes on where it stopped, whatever stopped it."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bench.config import ModelTuning, Run, Task
from bench.errors import UserError
from bench.files import cache_folder, keep_file
from bench.machine import repeatable
from bench.model import PrunableModel
from bench.nn.packing import Batch
from bench.records.identity import method_source
from bench.records.record import data_section
from bench.stages import progress
from bench.tasks import KINDS, scoring
from bench.tasks.data import TaskData
from bench.tasks.encoding import Encoded, Encoder, Examples, Positions
from bench.tasks.losses import objective
from bench.train import processes

SAVES = 10  # checkpoints in the course of a training, from the last of which an interrupted one goes on
POOL = 50  # batches among whose examples those of similar length are put together
LEAST_SAVED = 50  # steps between two of them
STATE, CLOCK = "trainer_state.json", "seconds"  # the file of a checkpoint that is written last; seconds spent so far
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
    """The whole train split, with labels, for a method that trains, and a folder for the checkpoints of its run.

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
    folder: Path
    seed: int
    device: str = "cpu"
    bf16: bool = False
    accumulate: int = 1
    task_name: str = ""
    embeddings: str = ""
    lock: Any = None
    began: float = field(default_factory=time.perf_counter)
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
            folder=cache_folder() / "training" / hashlib.sha256(content.encode()).hexdigest()[:32],
            seed=run.keys.seed,
            device=run.device,
            bf16=run.keys.precision == "bf16",
            accumulate=run.keys.accumulate,
            task_name=run.task_name,
            embeddings=run.model.arch.embeddings,
        )

    def __post_init__(self) -> None:
        self.earlier = _seconds(self.folder)  # spent before an interruption, in vain or not

    @cached_property
    def examples(self) -> list[Encoded]:
        """The examples of train (of questions every window) that the recipe reads, tokenised, with their labels."""
        return labelled(self.train, self.task, self.recipe)

    def taught(self) -> list[Encoded]:
        """The examples with the teacher's logits of each, computed once: it is in eval mode, so they stay the same."""
        kept = self.folder / "teacher.npy"
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
        return updates(len(self.examples), batch or self.recipe.batch, epochs)

    def task_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The task's mean loss, or half of it and half of the teacher's where the batch holds its logits."""
        kind = KINDS[self.task.kind]
        return objective(kind.logits(module, batch), batch["labels"], batch.get("teacher"), kind)

    def fit(self, module: nn.Module, plan: Fit, distil: bool = False, batch: int | None = None) -> None:
        """Train `module` in place; at the end it is in eval mode and asks for no gradients.

        Raises:
            ValueError: it has diverged.
        """
        self._claim()
        self.fits += 1
        work = self.folder / str(self.fits)
        module.requires_grad_(False)
        for group in plan.groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(list(plan.groups), eps=1e-8, weight_decay=0.0, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.rate)
        trainer = Looped(
            module,
            self._arguments(plan.steps, batch or self.recipe.batch, work),
            Drawn(self.taught() if distil else self.examples, plan.steps, batch or self.recipe.batch, self.seed),
            lambda examples: collate(self.encoder, examples),
            plan.loss,
            [_Before(plan.before), Bar(plan.steps, plan.label), _Clock(self)],
            (optimizer, scheduler),
        )
        with repeatable(self.device), torch.enable_grad():
            trainer.train(resume_from_checkpoint=last_checkpoint(work))
        released(module).eval().requires_grad_(False)
        module.zero_grad()
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise ValueError(f"{plan.label}: numbers that are not finite after {plan.steps} updates, a lower learning rate may help")

    def _claim(self) -> None:
        """Make the folder this process's alone (and those that train with it); where another has it, take a new one.

        Raises:
            UserError: it cannot be written.
        """
        if self.lock or processes.rank():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT)
            weakref.finalize(self, os.close, self.lock)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if processes.world() > 1:
                raise UserError("others train this very cell already: wait for them, or change seed=") from None
            self.lock = tempfile.TemporaryDirectory(prefix="other-", dir=self.folder.parent)
            self.folder, self.earlier = Path(self.lock.name), 0.0
        except OSError as error:
            where = "set BENCH_CACHE to a folder that can be written"
            raise UserError(f"cannot write {self.folder}: {error.strerror}; {where}") from error

    def _arguments(self, steps: int, batch: int, work: Path) -> TrainingArguments:
        return arguments(
            work,
            steps,
            self.device,
            per_device_train_batch_size=processes.share(batch, self.accumulate),
            gradient_accumulation_steps=self.accumulate,
            bf16=self.bf16,
            seed=self.seed,
            train_sampling_strategy="sequential",
        )


def released(module: nn.Module) -> nn.Module:
    """The module without what accelerate has wrapped around its forward pass: under mixed precision an autocast, in which it would
    be scored and timed in bfloat16."""
    for name in ("forward", "_original_forward"):
        module.__dict__.pop(name, None)
    return module


def arguments(work: Path, steps: int, device: str, **own: Any) -> TrainingArguments:
    """Those that every training of ours has, and its own: quiet, saved now and then, as long as it says, on one device a process."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # `accelerate launch` sets it; precision= decides
    made = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        use_cpu=device == "cpu",
        save_steps=max(LEAST_SAVED, steps // SAVES),
        save_total_limit=1,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # which would wait for a GPU in every step
        report_to=[],
        log_level="error",
        log_level_replica="error",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
        accelerator_config={"non_blocking": device == "cuda"},
        remove_unused_columns=False,
        ddp_broadcast_buffers=False,  # masks, which every process chooses by itself, the same
        ddp_backend="gloo" if device == "cpu" and processes.world() > 1 else None,
        **own,
    )
    made._n_gpu = min(1, made.n_gpu)  # of several, Trainer would make a larger batch
    return made


def rows(train: Examples, task: Task, recipe: ModelTuning) -> Positions:
    """A permutation of train's examples, the same every time, cut at the recipe's number of tokens."""
    order = np.random.default_rng(0).permutation(len(train))
    limits = [limit for limit in (task.tuning.max_tokens, recipe.max_tokens) if limit]
    if limits:
        few = order[: min(limits) // 4]  # an example has four tokens at the least
        lengths = np.cumsum([len(example["input_ids"]) for example in train.encode(few)])
        order = few[: max(1, int(np.searchsorted(lengths, min(limits), side="right")))]
    return order


def labelled(train: Examples, task: Task, recipe: ModelTuning) -> list[Encoded]:
    """Those examples, tokenised, with their labels."""
    chosen = rows(train, task, recipe)
    coded, labels = train.encode(chosen), train.labels(chosen)
    return [example | {"label": label} for example, label in zip(coded, labels, strict=True)]


def updates(examples: int, batch: int, epochs: float) -> int:
    """How many there are in so many epochs, at least one."""
    return max(1, int(-(-examples // batch) * epochs))


class Drawn(Dataset[Encoded]):
    """The examples of a whole training in the order of its updates: permutations of train by a seed, one an epoch, in which
    examples of a batch are of similar length (less padding). However many processes or micro-batches share an update, it is
    the same, and an interrupted training goes on with the examples that come next."""

    def __init__(self, examples: Sequence[Encoded], steps: int, batch: int, seed: int) -> None:
        self.examples = examples
        lengths = np.array([len(example["input_ids"]) for example in examples])
        random, parts, drawn = np.random.default_rng(seed), list[NDArray[np.intp]](), 0
        while drawn < steps * batch:
            parts.append(_epoch(lengths, batch, random))
            drawn += len(parts[-1])
        self.order = np.concatenate(parts)[: steps * batch]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Encoded:
        return self.examples[int(self.order[place])]


def _epoch(lengths: NDArray[np.intp], batch: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Every example once, in batches of similar length in random order; the last is filled up with examples drawn again."""
    order = random.permutation(len(lengths))
    order = np.concatenate([order, random.choice(len(lengths), -len(order) % batch)])
    pools = [order[start : start + POOL * batch] for start in range(0, len(order), POOL * batch)]
    batches = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch) for pool in pools])
    return batches[random.permutation(len(batches))].ravel()


class Looped(Trainer):  # type: ignore[misc]
    """transformers' Trainer on a loss of ours."""

    def __init__(
        self,
        module: nn.Module,
        arguments: TrainingArguments,
        examples: Any,
        collator: Callable[[Sequence[Any]], dict[str, Tensor]],
        loss: Callable[[nn.Module, Batch], Tensor] | None,
        callbacks: Sequence[TrainerCallback],
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        super().__init__(
            model=module, args=arguments, train_dataset=examples, data_collator=collator, callbacks=list(callbacks), optimizers=optimizers
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # a loss is a mean: of micro-batches the mean is taken
        self._loss = loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The mean loss of a batch: the given one, else what the model itself says."""
        return self._loss(model, inputs) if self._loss else model(**inputs).loss


class Bar(TrainerCallback):  # type: ignore[misc]
    """Moves a progress bar by a step."""

    def __init__(self, steps: int, label: str) -> None:
        self.steps, self.label = steps, label
        self.bar: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From the step that an interrupted training goes on with."""
        self.bar = progress(range(state.global_step, self.steps), self.label)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more."""
        next(self.bar, None)


class _Before(TrainerCallback):  # type: ignore[misc]
    """Calls what has to be done before every update, once, however many micro-batches it has."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.call(state.global_step)


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Writes down after every update how many seconds the run's pruning has taken, so that an interruption hides none."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.should_save:
            spent = self.training.earlier + time.perf_counter() - self.training.began
            half = self.training.folder / f"{CLOCK}.half"
            half.write_text(f"{spent:.3f}")
            half.replace(self.training.folder / CLOCK)  # whole or as it was, whatever stops us; no wait for the disk in every step


def collate(encoder: Encoder, examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Some examples with labels as a padded batch; with the teacher's logits [B, outputs] or [B, T, 2] where they have them."""
    out = dict(encoder.batch(examples, np.array([example["label"] for example in examples]), "cpu"))
    out.pop("places", None)
    if "teacher" in examples[0]:
        logits = torch.as_tensor(np.stack([example["teacher"] for example in examples]))
        out["teacher"] = KINDS[encoder.task.kind].cut(logits, out["input_ids"].shape[1])
    return out


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint of an interrupted training; half a one is removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        with contextlib.suppress(OSError, ValueError):
            json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
            if processes.world() == 1 or all((found[-1] / f"rng_state_{k}.pth").is_file() for k in range(processes.world())):
                return str(found[-1])
        shutil.rmtree(found.pop(), ignore_errors=True)
    return None


def _seconds(folder: Path) -> float:
    try:
        return float((folder / CLOCK).read_text())
    except (OSError, ValueError):
        return 0.0
