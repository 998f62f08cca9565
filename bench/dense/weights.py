"""Which weights a checkpoint has to hold, and of which shapes, told from its config.json alone: without torch, within a second."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config import Arch
from bench.errors import UserError

Size = int | None  # None: config.json does not say it
Shapes = Mapping[str, list[int]]
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of the first BERT checkpoints


def lacking(shapes: Shapes, config: Mapping[str, Any], arch: Arch, outputs: int, head: Sequence[str]) -> list[str]:
    """The weights that a checkpoint's files do not hold, or hold in another shape than its config says.

    `shapes`: those of its tensors by name; `outputs`: of the last of the `head`, its linear layers.
    """
    found = {spelling: shape for name, shape in shapes.items() for spelling in _spellings(name, arch)}
    found |= shapes
    wanted = dict(_expected(config, arch, outputs, head))
    missing = [name for name in wanted if name not in found]
    misshapen = [f"{name} of the config's shape" for name, shape in wanted.items() if name in found and not _fits(found[name], shape)]
    return sorted([*missing, *misshapen])


def refuse_lacking(folder: Path, names: list[str]) -> None:
    """Nothing, where no names are given.

    Raises:
        UserError: the checkpoint in the folder lacks these weights.
    """
    if names:
        few = f"{', '.join(names[:3])}{', …' * (len(names) > 3)}"
        raise UserError(f"{folder} lacks weights of the model: {few}; save or fetch the checkpoint again")


def _spellings(name: str, arch: Arch) -> list[str]:
    """Names under which transformers finds a tensor of a file: old names mended, the encoder's prefix there or not."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    prefix = f"{arch.layers.split('.')[0]}."
    return [name, name.removeprefix(prefix), f"{prefix}{name}"]


def _expected(config: Mapping[str, Any], arch: Arch, outputs: int, head: Sequence[str]) -> Iterator[tuple[str, list[Size]]]:
    """Every weight of the model with its shape."""

    def size(field: str) -> Size:
        value = config.get(field)
        return value if isinstance(value, int) else None

    hidden, neurons = size(arch.hidden), size(arch.neurons)
    queries, keys = _attention_rows(size, arch)
    biased = not arch.causal  # of a decoder the config says which linear maps have biases, each family in its own way
    for name, fields in arch.weights.items():
        yield name, [size(field) for field in fields]
    attention, feed_forward = arch.attention, arch.feed_forward
    for layer in range(size("num_hidden_layers") or size("n_layers") or 0):
        at = f"{arch.layers}.{layer}"
        yield from _linear(f"{at}.{attention.query}", queries, hidden, biased)
        for path in (attention.key, attention.value):
            yield from _linear(f"{at}.{path}", keys, hidden, biased)
        yield from _linear(f"{at}.{attention.output}", hidden, queries, biased)
        for path in filter(None, (feed_forward.up, feed_forward.gate)):
            yield from _linear(f"{at}.{path}", neurons, hidden, biased)
        yield from _linear(f"{at}.{feed_forward.output}", hidden, neurons, biased)
        for path in (attention.norm, feed_forward.norm):
            yield from ((f"{at}.{path}.{kind}", [hidden]) for kind in ("weight", *(["bias"] if biased else [])))
    for name in head:
        yield from _linear(name, outputs if name == head[-1] else hidden, hidden)


def _attention_rows(size: Callable[[str], Size], arch: Arch) -> tuple[Size, Size]:
    """The rows of the query map, and those of the key and value maps."""
    hidden, heads = size(arch.hidden), size(arch.heads)
    if not arch.kv_heads:
        return hidden, hidden
    own, shared = size("head_dim"), size(arch.kv_heads)
    width = own or (hidden // heads if hidden and heads else None)
    return width and heads and width * heads, width and shared and width * shared


def _linear(name: str, rows: Size, columns: Size, biased: bool = True) -> Iterator[tuple[str, list[Size]]]:
    yield f"{name}.weight", [rows, columns]
    if biased:
        yield f"{name}.bias", [rows]


def _fits(found: list[int], wanted: list[Size]) -> bool:
    return len(found) == len(wanted) and all(size is None or size == real for real, size in zip(found, wanted, strict=True))
