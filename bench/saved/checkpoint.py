"""A saved model: loaded from its folder without the method and without the dense weights (bench.saved.writing writes it).

    from bench.saved.checkpoint import load
    model = load("DIR")

Nothing in such a folder is unpickled or run: weights and masks are safetensors, the rest is JSON (docs/saved.md).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

import bench
from bench import checks
from bench.checks import BITS_FILE, CONFIG_FILE, MASKS_FILE, RECORD_FILE, WEIGHTS_FILE
from bench.config import Arch, Run, Task, typed
from bench.dense.finding import FACTS_FILE, PRUNED, read_json, safetensors_shapes
from bench.errors import UserError, first_line
from bench.files import digest, place
from bench.masks import Masks, WeightMasks
from bench.masks import place as place_of
from bench.model import PrunableModel
from bench.nn import word_head
from bench.nn.shrink import shrink
from bench.records.schema import Record
from bench.tasks import KINDS

SCHEMA = 1


@dataclass
class Facts:
    """What prunebench.json holds: all that a saved model needs beside its weights, its masks and transformers' config.

    `heads`, `neurons`: units kept per layer; `kept_heads`: which heads, where the architecture has a position bias, of
    which every layer takes its own heads' rows; `sha256`: of the weights and the masks.
    """

    schema: int
    prunebench: str
    id: str
    method: str
    task_name: str
    model: str
    unit: str
    ratio: float
    seed: int
    kind: str
    outputs: int
    task: Task
    arch: Arch
    attention: str
    heads: list[int] = field(default_factory=list)
    neurons: list[int] = field(default_factory=list)
    kept_heads: list[list[int]] | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    label_words: bool | None = None

    @staticmethod
    def of(run: Run, run_id: str) -> "Facts":
        """Of a run; what is kept comes with the masks. No dotted path of code stays in the task."""
        return Facts(
            schema=SCHEMA,
            prunebench=bench.__version__,
            id=run_id,
            method=run.method,
            task_name=run.task_name,
            model=run.model_name,
            unit=run.keys.unit,
            ratio=run.keys.ratio,
            seed=run.keys.seed,
            kind=run.task.kind,
            outputs=run.task.outputs,
            task=replace(run.task, build=None),
            arch=run.model.arch,
            attention=run.model.attention,
        )


@dataclass(frozen=True)
class Saved:
    """A saved model without its weights, checked: facts, masks (factors included) and transformers' config."""

    folder: Path
    facts: Facts
    masks: Masks
    config: Any

    @property
    def positions(self) -> int:
        """The most tokens that an example may have."""
        return int(self.config.max_position_embeddings) - self.facts.arch.position_offset

    def record(self) -> Record:
        """The record of the run that made it.

        Raises:
            UserError: it is not there, or damaged.
        """
        return read_json(self.folder / RECORD_FILE)


def load(path: str | Path) -> nn.Module:
    """The saved model on the CPU: in eval mode, weights require no gradient, equal to the bit to the one that was saved.

    `model(**tokenizer(text, return_tensors="pt")).logits` [B, outputs]; of questions `start_logits`, `end_logits` [B, T].

    Raises:
        UserError: one sentence for what is wrong with the folder.
    """
    saved = read(path)
    module = structure(saved)
    file = saved.folder / WEIGHTS_FILE
    _check_tensors(file, module)
    _check_digest(saved, WEIGHTS_FILE)
    weights = _tensors(file, safetensors.torch.load_file)
    if other := sorted({str(tensor.dtype) for tensor in weights.values()} - {"torch.float32"}):
        raise UserError(f"{file} holds {other[0]}, a saved model has torch.float32 weights")
    # clones: the file is mapped into memory, and may be replaced while the model is in use
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    shared = tied(module)
    module.load_state_dict(weights | {name: weights[first] for name, first in shared.items()}, strict=True, assign=True)
    for name, first in shared.items():
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, module.get_parameter(first))
    return module


def tied(module: nn.Module) -> dict[str, str]:
    """The map to a vocabulary by its parameter's name, with that of the embeddings, where the two are one parameter; else nothing."""
    head, words = (getattr(module, f"get_{name}_embeddings", lambda: None)() for name in ("output", "input"))
    if head is None or words is None or head.weight is not words.weight:
        return {}
    names = {id(child): name for name, child in module.named_modules()}
    return {f"{names[id(head)]}.weight": f"{names[id(words)]}.weight"}


def read(path: str | Path) -> Saved:
    """A saved model without its weights.

    Raises:
        UserError: one sentence for what is wrong with the folder.
    """
    folder = place(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is {'a file' if folder.exists() else 'not there'}: name the folder of a saved model")
    try:
        _check_files(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    facts = _facts(folder / FACTS_FILE)
    masks = _masks(folder / MASKS_FILE)
    kept = kept_units(masks, facts.arch)
    if kept != {name: getattr(facts, name) for name in kept}:
        raise UserError(f"{folder / MASKS_FILE} does not fit {FACTS_FILE}: they keep different units")
    saved = Saved(folder, facts, masks, _config(folder / CONFIG_FILE, facts, masks))
    _check_digest(saved, MASKS_FILE)
    if (folder / BITS_FILE).exists() or BITS_FILE in facts.sha256:
        _check_digest(saved, BITS_FILE)
    return saved


def kept_units(masks: Masks, arch: Arch) -> dict[str, Any]:
    """The fields of Facts that tell which units are kept."""
    heads = [np.flatnonzero(row).tolist() for row in masks.heads]
    return {
        "heads": [len(row) for row in heads],
        "neurons": (masks.neurons != 0).sum(1).tolist(),
        "kept_heads": heads if arch.position_bias else None,
    }


def weight_masks(saved: Saved) -> WeightMasks | None:
    """Which single weights a saved model keeps; None where it lost whole heads and neurons instead.

    Raises:
        UserError: the file does not fit the model.
    """
    file = saved.folder / BITS_FILE
    if BITS_FILE not in saved.facts.sha256:
        return None
    packed = _tensors(file, safetensors.numpy.load_file)
    matrices = PrunableModel(structure(saved), saved.facts.arch, KINDS[saved.facts.kind]).matrices()
    sizes = {name: linear.weight.shape for own in matrices.values() for name, linear in own.items()}
    if {name: -(-size.numel() // 8) for name, size in sizes.items()} != {name: bits.size for name, bits in packed.items()}:
        raise UserError(f"{file} is not of the matrices that {CONFIG_FILE} describes")
    return WeightMasks({name: np.unpackbits(packed[name], count=size.numel()).astype(bool).reshape(size) for name, size in sizes.items()})


def structure(saved: Saved) -> nn.Module:
    """The shrunk model without weights: its parameters are on the meta device, its buffers are real.

    Raises:
        UserError: config, architecture and masks do not fit each other.
    """
    kind = KINDS[saved.facts.kind]
    structural = Masks((saved.masks.heads != 0).astype(float), (saved.masks.neurons != 0).astype(float))
    try:
        with _without_weights():
            dense = dense_module(saved)
            if saved.facts.label_words is not None:
                word_head.structure(dense, saved.facts.arch, kind, saved.facts.label_words)
        model = PrunableModel(dense, saved.facts.arch, kind)
        _with_saved_biases(model, safetensors_shapes(saved.folder / WEIGHTS_FILE))
        return shrink(model, structural)
    except Exception as error:
        raise UserError(f"{saved.folder}: {FACTS_FILE}, {CONFIG_FILE} and {MASKS_FILE} do not fit: {first_line(error)}") from error


def _with_saved_biases(model: PrunableModel, found: dict[str, list[int]]) -> None:
    """Output projections get the biases that a method has given them, of families that have none."""
    for s, sublayer in enumerate(model.sublayers):
        at = f"{model.arch.layers}.{place_of(s)[1]}"
        names = {f"{at}.{sublayer.paths.output}.bias", f"{at}.{sublayer.paths.core}.bias"}
        has_one: Tensor | None = sublayer.projection.bias
        if has_one is None and names & found.keys():
            sublayer.add_bias(sublayer.bias)


def dense_module(saved: Saved) -> nn.Module:
    """A dense model of the same config, with new weights, in eval mode."""
    module: nn.Module = KINDS[saved.facts.kind].from_config(
        saved.config, attn_implementation=saved.facts.attention, dtype=torch.float32, trust_remote_code=False
    )
    return module.eval().requires_grad_(False)


@contextmanager
def _without_weights() -> Iterator[None]:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def _check_files(folder: Path) -> None:
    if not (folder / FACTS_FILE).is_file():
        raise UserError(f"{folder} is not a saved model: it has no {FACTS_FILE}; python -m bench ... save=DIR makes one")
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".npz")]
    for name in (CONFIG_FILE, WEIGHTS_FILE, MASKS_FILE):
        if not (folder / name).is_file():
            instead = f"; {pickles[0]} is not read, it may hold pickled code" if pickles else ""
            raise UserError(f"{folder} is not a whole saved model: it has no {name}{instead}")


def _facts(path: Path) -> Facts:
    content = read_json(path)
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise UserError(f"{path} does not say its schema: it is not a saved model of ours")
    if schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, this prunebench reads up to {SCHEMA}: install a newer one")
    try:
        if "${" in json.dumps(content):  # would be looked up in this process's environment
            raise UserError("it holds ${...}, which a saved model never does")
        facts = typed(Facts, content, "")
        checks.check_task(facts.task_name, facts.task)
    except (UserError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    facts.task.build = None  # the name of code, which is not taken from a folder
    if facts.task_name.startswith(".") or Path(facts.task_name).name != facts.task_name:  # data are looked for under it
        raise UserError(f"{path}: task_name={facts.task_name!r} is no name")
    if facts.attention not in ("eager", "sdpa") or (facts.kind, facts.outputs) != (facts.task.kind, facts.task.outputs):
        raise UserError(f"{path}: its attention, kind or outputs are not those of a task and model here")
    return facts


def _masks(path: Path) -> Masks:
    shapes = safetensors_shapes(path)
    if sorted(shapes) != ["heads", "neurons"] or any(len(shape) != 2 for shape in shapes.values()):
        raise UserError(f"{path} does not hold heads [L, H] and neurons [L, I]")
    arrays = _tensors(path, safetensors.numpy.load_file)
    if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{path} does not hold finite float64 numbers")
    return Masks(**arrays)


def _config(path: Path, facts: Facts, masks: Masks) -> Any:
    """transformers' config of the dense model, of the sizes that the masks have. No code that it may name is run."""
    from transformers import AutoConfig

    content = _dense_config(read_json(path), facts, masks)
    if content.get("model_type") != facts.arch.model_type:
        raise UserError(f"{path} is of a {content.get('model_type')}, {FACTS_FILE} of a {facts.arch.model_type}")
    try:
        config: Any = type(AutoConfig.for_model(facts.arch.model_type)).from_dict(content)
        sizes = (
            getattr(config, "num_hidden_layers", len(masks.heads)),
            getattr(config, facts.arch.groups),
            getattr(config, facts.arch.neurons),
        )
        outputs = config.num_labels
    except Exception as error:
        raise UserError(f"{path} is no config of a {facts.arch.model_type}: {first_line(error)}") from error
    (layers, heads), (rows, neurons) = masks.heads.shape, masks.neurons.shape
    if sizes != (layers, heads, neurons) or layers != rows:
        raise UserError(f"{path.with_name(MASKS_FILE)} has {layers} layers of {heads} heads and {neurons} neurons, {CONFIG_FILE} {sizes}")
    if facts.outputs and outputs != facts.outputs:
        raise UserError(f"{path} has {outputs} outputs, the task {facts.task_name} {facts.outputs}")
    return config


def _dense_config(content: dict[str, Any], facts: Facts, masks: Masks) -> dict[str, Any]:
    """The same as transformers knows it, that of the dense model; models that were saved before 2026-11-29 have no other."""
    if content.get("model_type") != PRUNED + facts.arch.model_type:
        return content
    full = {facts.arch.groups: (facts.heads, masks.heads.shape[1]), facts.arch.neurons: (facts.neurons, masks.neurons.shape[1])}
    sizes = {name: size for name, (kept, size) in full.items() if content.get(name) == kept}
    return content | sizes | {"model_type": facts.arch.model_type}


def _check_tensors(file: Path, module: nn.Module) -> None:
    found = safetensors_shapes(file)
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items() if name not in tied(module)}
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{file} lacks {_few(missing)}")
    if surplus := sorted(found.keys() - wanted.keys()):
        raise UserError(f"{file} holds {_few(surplus)}, which the pruned model does not have")
    if wrong := sorted(name for name in wanted if found[name] != wanted[name]):
        name = wrong[0]
        raise UserError(f"{file}: {name} has shape {found[name]}, the pruned model needs {wanted[name]}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def _check_digest(saved: Saved, name: str) -> None:
    if digest(saved.folder / name) != saved.facts.sha256.get(name):
        raise UserError(f"{saved.folder / name} is damaged, or not the file that was saved: its SHA-256 is not the one in {FACTS_FILE}")


def _tensors(path: Path, reader: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = reader(path)
    except Exception as error:  # whatever the library raises for a damaged file
        raise UserError(f"{path} is damaged or truncated") from error
    return found
