"""Finding the dense checkpoint, and checking it before anything heavy is imported.

In this order: `model.path`, `$BENCH_MODELS/<model>/<task>`, an earlier fine-tuning of our own (cache, by content), the
hub checkpoint that the model's YAML lists. Where none is found, bench.dense.finetune makes one.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from bench.config import Arch, Model, Run
from bench.dense import hub, packages, weights
from bench.errors import UserError, first_line
from bench.files import cache_folder, digest, place, place_of
from bench.tasks import KINDS
from bench.tasks.data import TaskData

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
EXTRA_FILES = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt", "added_tokens.json")
FACTS_FILE = "prunebench.json"  # of a model that was saved by a run (docs/saved.md)
PRUNED = "prunebench-"  # before the model type, where heads or neurons of a saved model are gone


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned model: a transformers folder, known by its content.

    `sha256` covers weights, config and tokenizer; `expected` is the score that a model card claims, in percent;
    `label_map[output]` is the task's label for each of the model's outputs.
    """

    folder: Path
    source: str
    sha256: str
    expected: float | None = None
    label_map: list[int] | None = None


def find(run: Run, data: TaskData) -> Checkpoint | None:
    """The dense checkpoint of a run, or None where it has to be fine-tuned first.

    Raises:
        UserError: a checkpoint is there, but damaged, of another architecture, or for another number of labels.
    """
    if run.model.weights == "random":
        made = random_folder(run)
        return _checked(made, f"random:{run.model_name}", run) if made.exists() else None
    if run.model.path is not None:
        return _checked(place(run.model.path, "model.path="), "path", run)
    if folder := _in_models(run):
        return _checked(folder, f"models:{run.model_name}/{run.task_name}", run)
    if not KINDS[run.task.kind].fine_tuned:
        return _published(run)
    key = tuned_key(run, data)
    if key and (tuned := tuned_folder(key)).exists():
        try:
            return _checked(tuned, f"tuned:{key[:12]}", run)
        except UserError as error:
            raise UserError(f"{error}; delete the folder and it is fine-tuned again") from error
    listed = run.model.checkpoints.get(run.task_name)
    if listed and (found := hub.snapshot(listed.hub)):
        return _checked(found, f"hub:{listed.hub}", run, listed.expected, listed.label_map)
    if not (run.model.base.packages or run.model.base.random or base_from_hub(run)):
        where = "set model.path= or BENCH_MODELS, or use model=minilm, which comes from the package index"
        raise UserError(f"no checkpoint of {run.model_name} for {run.task_name} here, and the hub is not reachable; {where}")
    return None


def _published(run: Run) -> Checkpoint | None:
    """The base encoder as it is, for a task that asks for no fine-tuning; None where it is made of random weights first."""
    base = run.model.base
    folder = tiny_folder(run.model) if base.random is not None else fetch_base(run)
    if folder is None:
        raise UserError(f"no base encoder of {run.model_name} here, and the hub is not reachable; set model.path=, or use model=minilm")
    return _checked(folder, f"base:{run.model_name}", run) if folder.exists() else None


def tiny_folder(model: Model) -> Path:
    """Where a base of random weights is kept."""
    facts = {"type": model.arch.model_type, **(model.base.random or {})}
    return cache_folder() / "weights" / f"random-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"


def random_folder(run: Run) -> Path:
    """Where a model of random weights with the task's head is kept (model.weights=random)."""
    facts = [run.model.arch.model_type, run.model.base.shape or run.model.base.random, run.task.kind, run.task.outputs]
    return cache_folder() / "weights" / f"random-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"


def _in_models(run: Run) -> Path | None:
    """`$BENCH_MODELS/<model>/<task>`, where it is there."""
    root = place_of("BENCH_MODELS")
    folder = root and place(root / run.model_name / run.task_name, "BENCH_MODELS=")
    return folder if folder and folder.exists() else None


def fetch_base(run: Run) -> Path | None:
    """The base encoder's folder from the package index or the hub; None where neither has it.

    Raises:
        UserError: the package index does not give it.
    """
    if run.model.base.packages:
        return packages.folder(run.model_name, run.model.base)
    return base_from_hub(run)


def prefetch_base(run: Run) -> None:
    """On a machine where nothing can have been fine-tuned yet, get the packages before anything slow is begun."""
    known = run.model.path or run.task_name in run.model.checkpoints or (cache_folder() / "tuned").exists()
    if run.model.base.packages and not known and not _in_models(run):
        fetch_base(run)


def base_from_hub(run: Run) -> Path | None:
    """The base encoder's folder, where it comes from the hub and can be had."""
    return hub.snapshot(run.model.base.hub) if run.model.base.hub else None


def tuned_key(run: Run, data: TaskData) -> str | None:
    """What a fine-tuning of our own is kept by: recipe, base weights and training data; None where the base is not here."""
    base = base_identity(run)
    if base is None:
        return None
    recipe = {
        "version": 1,
        "base": base,
        "arch": run.model.arch.model_type,
        "model": asdict(run.model.tuning),
        "task": asdict(run.task.tuning),
        "columns": run.task.columns,
        "labels": run.task.labels,
        "max_length": run.task.max_length,
        **({"windows": asdict(run.task.windows)} if run.task.windows else {}),
        "train": data.train.sha256,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def base_identity(run: Run) -> Any:
    """What tells the base encoder's weights from others: hash, or how random ones are made; None where they are not here."""
    known = run.model.base.sha256 or run.model.base.random
    folder = None if known else base_from_hub(run)
    return identity(folder) if folder else known


def tuned_folder(key: str) -> Path:
    """Where a fine-tuning of our own is kept."""
    return cache_folder() / "tuned" / key


def _checked(folder: Path, source: str, run: Run, expected: float | None = None, label_map: list[int] | None = None) -> Checkpoint:
    check_folder(folder, run.model.arch, run.task.outputs, KINDS[run.task.kind].head(run.model.arch))
    return Checkpoint(folder, source, identity(folder), expected, label_map)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one safetensors, its shards, or a pickle (read with weights_only); or none."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(_plain_name(name) for name in shards.values()):
            raise UserError(f"{index} does not say which file holds which weight")
        for name in sorted(set(shards.values())):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}, which {index.name} names; fetch the checkpoint again")
        return [folder / name for name in sorted(set(shards.values()))]
    return [folder / "pytorch_model.bin"] if (folder / "pytorch_model.bin").is_file() else []


def _plain_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and Path(name).name == name


def identity(folder: Path) -> str:
    """SHA-256 over everything in a checkpoint that changes what is computed: weights, config, tokenizer."""
    total = hashlib.sha256()
    others = [folder / name for name in ("config.json", *TOKENIZER_FILES, *EXTRA_FILES)]
    for file in [*weight_files(folder), *(other for other in others if other.is_file())]:
        total.update(f"{file.name} {digest(file)}\n".encode())
    return total.hexdigest()


def check_folder(folder: Path, arch: Arch, outputs: int, head: Sequence[str] | None = None) -> None:
    """A transformers folder is whole, of this architecture, and has this number of outputs. `head`: the linear layers of the task's
    head (bench.tasks.kind), a classifier's where nothing is said.

    Raises:
        UserError: one sentence for what is wrong with it.
    """
    if not (place(folder / "config.json").is_file()):
        raise UserError(f"{folder} is not a checkpoint: it has no config.json")
    config = read_json(folder / "config.json")
    if _is_pruned(folder, config, arch):
        instead = f"name the checkpoint that it was pruned from, or see what it scores with python -m bench.measure {folder}"
        raise UserError(f"{folder} is a pruned model, a run starts from a dense one: {instead}")
    if config.get("model_type") != arch.model_type:
        raise UserError(f"{folder} is a {config.get('model_type')}, not a {arch.model_type}: another model= fits it")
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} is not a checkpoint: it has no model.safetensors")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer (tokenizer.json or a vocabulary)")
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= safetensors_shapes(file) if file.suffix == ".safetensors" else _check_pickle(file)
    if shapes:  # a pickle says only on loading what it holds
        layers = arch.head_layers if head is None else head
        _check_head(folder, shapes, outputs, layers)
        weights.refuse_lacking(folder, weights.lacking(shapes, config, arch, outputs, layers))


def _check_head(folder: Path, shapes: Mapping[str, list[int]], outputs: int, layers: Sequence[str]) -> None:
    for last in layers[-1:]:
        found = shapes.get(f"{last}.weight")
        if found is None:
            raise UserError(f"{folder} has no {last}: it is not fine-tuned for such a task")
        if found[0] != outputs:
            raise UserError(f"{folder} has {found[0]} output{'s' * (found[0] > 1)}, the task needs {outputs}")


def _is_pruned(folder: Path, config: dict[str, Any], arch: Arch) -> bool:
    """Whether a folder is a saved model that lost heads or neurons, or whose head is one of label words."""
    if str(config.get("model_type")).startswith(PRUNED):
        return True
    if not (folder / FACTS_FILE).is_file():
        return False
    facts = read_json(folder / FACTS_FILE)
    kept = {"heads": config.get(arch.groups), "neurons": config.get(arch.neurons)}
    smaller = any(units != full for name, full in kept.items() if isinstance(facts.get(name), list) for units in facts[name])
    return smaller or facts.get("label_words") is not None


def pruned_before(folder: Path) -> str | None:
    """How the model in a folder came about, where a run saved it: its method, ratio, seed and id."""
    if not (folder / FACTS_FILE).is_file():
        return None
    facts = read_json(folder / FACTS_FILE)
    return "{method}, {unit} {ratio}, seed {seed}, run {id}".format(
        **{key: facts.get(key) for key in ("method", "unit", "ratio", "seed", "id")}
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold an object")
    return content


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes from the header, whose offsets must agree with the shapes and end where the file ends."""
    damaged = UserError(f"{path} is damaged or truncated")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise damaged
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
        for entry in header.values():
            start, stop = entry["data_offsets"]
            if entry["dtype"] in width and stop - start != width[entry["dtype"]] * prod(entry["shape"]):
                raise damaged
        shapes = {name: list(entry["shape"]) for name, entry in header.items()}
    except Exception as error:  # anything may stand in a damaged header
        raise damaged from error
    if size != 8 + length + end:
        raise damaged
    return shapes


def _check_pickle(path: Path) -> dict[str, list[int]]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or truncated (or older than PyTorch 1.6)")
    return {}
