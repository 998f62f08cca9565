"""transformers' Trainer as every training here uses it: on a loss of ours, quiet, and saved now and then."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bench.nn.packing import Batch
from bench.stages import progress
from bench.train import processes

SAVES = 10  # checkpoints in the course of a training, from the last of which an interrupted one goes on
LEAST_SAVED = 50  # steps between two of them


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


class Before(TrainerCallback):  # type: ignore[misc]
    """Calls what has to be done before every update, once, however many micro-batches it has."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With the number of the update."""
        self.call(state.global_step)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Calls after every update what writes down how long the run has taken, so that an interruption hides nothing."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """By the process that saves."""
        if args.should_save:
            self.write()


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


def released(module: nn.Module) -> nn.Module:
    """The module without what accelerate has wrapped around its forward pass: under mixed precision an autocast, in which it would
    be scored and timed in bfloat16."""
    for name in ("forward", "_original_forward"):
        module.__dict__.pop(name, None)
    return module
