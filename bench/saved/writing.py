"""A pruned model is written as a folder, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from bench import checks
from bench.checks import BITS_FILE, CONFIG_FILE, MASKS_FILE, WEIGHTS_FILE
from bench.dense.finding import EXTRA_FILES, FACTS_FILE, PRUNED, TOKENIZER_FILES
from bench.errors import UserError, first_line
from bench.files import digest, sync
from bench.masks import Masks, WeightMasks
from bench.nn import word_head
from bench.saved.checkpoint import Facts, kept_units, load, tied
from bench.tasks import KINDS


def save(target: Path, module: nn.Module, masks: Masks, facts: Facts, files: Sequence[Path], weights: WeightMasks | None = None) -> None:
    """Write a shrunk model, float32, as the folder `target`: under a temporary name beside it, synced, read back, renamed.

    Of a model that lost single weights the file is as large as a dense one's; their masks lie beside it, eight to a byte. `files`
    are copied as they are (the run's record, the tokenizer's files). An earlier saved model is replaced.

    Raises:
        UserError: the place cannot be written, or holds something else.
    """
    target = Path(os.path.realpath(target))
    half: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
        _fill(half, module, masks, facts, files, weights)
        if not same(module, load(half)):
            raise RuntimeError("the pruned model does not come back from its file as it was, so it is not saved")
        half.chmod(0o755)
        _put(half, target)
    except OSError as error:
        raise UserError(f"cannot save the model as {target}: {error.strerror or first_line(error)}") from error
    finally:
        if half is not None:
            shutil.rmtree(half, ignore_errors=True)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a transformers folder that its tokenizer is made from."""
    return [folder / name for name in (*TOKENIZER_FILES, *EXTRA_FILES) if (folder / name).is_file()]


def _fill(half: Path, module: nn.Module, masks: Masks, facts: Facts, files: Sequence[Path], bits: WeightMasks | None) -> None:
    # clones: a view of a larger tensor gets memory of its own
    own = {name: tensor for name, tensor in module.state_dict().items() if name not in tied(module)}
    weights = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in own.items()}
    safetensors.torch.save_file(weights, half / WEIGHTS_FILE, metadata={"format": "pt"})
    safetensors.numpy.save_file({"heads": masks.heads, "neurons": masks.neurons}, half / MASKS_FILE)
    if bits:
        safetensors.numpy.save_file(bits.packed(), half / BITS_FILE)
    for file in files:
        shutil.copyfile(file, half / file.name)
    hashed = [WEIGHTS_FILE, MASKS_FILE, *([BITS_FILE] if bits else [])]
    kept = kept_units(masks, facts.arch) | {"sha256": {name: digest(half / name) for name in hashed}}
    facts = replace(facts, **kept, label_words=word_head.found(module, facts.arch))
    _write_json(half / FACTS_FILE, asdict(facts))
    _write_json(half / CONFIG_FILE, _written_config(module.config, facts, masks))
    _name_tokenizer(half, module.config)
    KINDS[facts.kind].files(facts.task, half, facts.arch, masks, module)
    for path in half.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the libraries and the copied files' modes are
        sync(path)
    sync(half)


def _written_config(config: Any, facts: Facts, masks: Masks) -> dict[str, Any]:
    """config.json: outputs in the task's order; of a model that is not a whole one a type of its own and the units of each layer, so
    that transformers refuses what it would fill up with new weights."""
    labels = facts.task.labels or [f"LABEL_{i}" for i in range(facts.outputs)]
    content = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    content |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if masks.heads.all() and masks.neurons.all() and facts.label_words is None:
        return content
    own = {"model_type": PRUNED + facts.arch.model_type, "architectures": None}
    return content | own | {facts.arch.groups: facts.heads, facts.arch.neurons: facts.neurons}


def _name_tokenizer(half: Path, config: Any) -> None:
    """The tokenizer's class, which transformers takes from the model's type where no file names it."""
    from transformers import AutoTokenizer

    file = half / "tokenizer_config.json"
    if not file.exists() and any((half / name).exists() for name in TOKENIZER_FILES):
        found = AutoTokenizer.from_pretrained(half, config=config, local_files_only=True, trust_remote_code=False)
        _write_json(file, {"tokenizer_class": type(found).__name__})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _put(half: Path, target: Path) -> None:
    """Rename to the target; an earlier saved model there stays until the new one is whole."""
    checks.check_free(target, f"save={target}")
    old: Path | None = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
        target.rename(old)  # onto an empty folder
    try:
        half.rename(target)
        sync(target.parent)
    except OSError:
        if old is not None and not target.exists():
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters and buffers, to the bit, wherever they lie."""
    first, second = (_named(module) for module in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
