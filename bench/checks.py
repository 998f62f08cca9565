"""What can be wrong with the values of a run, told before anything heavy is imported. Every check raises UserError."""

import ast
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import machine, plugin
from bench.config import Keys, LatencyPlan, Model, ModelTuning, Run, Task
from bench.dense.finding import EXTRA_FILES, FACTS_FILE, TOKENIZER_FILES
from bench.errors import UserError, nearest
from bench.files import place
from bench.tasks import KINDS
from bench.train import processes

CONFIG_FILE, RECORD_FILE = "config.json", "record.json"  # of a saved model, beside FACTS_FILE
WEIGHTS_FILE, MASKS_FILE = "model.safetensors", "masks.safetensors"
BITS_FILE = "weight_masks.safetensors"  # only where single weights were pruned
SAVED_FILES = (FACTS_FILE, CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, MASKS_FILE, BITS_FILE, *TOKENIZER_FILES, *EXTRA_FILES)
VALUES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a word", "None": "null"}


def check_keys(keys: Keys, device: str) -> None:
    """The run's own keys; `device` is what it runs on."""
    _choice("unit", keys.unit, {"auto", "flops", "params", "latency", "weights"})
    _choice("precision", keys.precision, {"fp32", "bf16"})
    _choice("device", keys.device, {"auto", "cpu", "cuda"})
    _choice("latency", keys.latency.plan, {"none", "quick", "paper"})
    _choice("calibration.sampler", keys.calibration.sampler, {"tokens", "legacy"})
    _demand("recover.epochs", keys.recover.epochs, keys.recover.epochs >= 0, "at least 0")
    _demand("recover.rounds", keys.recover.rounds, keys.recover.rounds >= 1, "at least 1")
    if not keys.recover.epochs and (keys.recover.distil or keys.recover.rounds > 1):
        raise UserError("recover.distil and recover.rounds say how to train after pruning: recover.epochs=1 or more goes with them")
    _demand("accumulate", keys.accumulate, keys.accumulate >= 1, "at least 1")
    _demand("ratio", keys.ratio, 0 <= keys.ratio < 1, "the share to remove lies in [0, 1), for example ratio=0.5")
    _at_least_one("round_to", keys.round_to)
    _demand("seed", keys.seed, 0 <= keys.seed < 2**32, "a whole number from 0 to 2**32 - 1")
    for name, value in asdict(keys.calibration).items():
        _demand(f"calibration.{name}", value, not isinstance(value, int) or value >= 1, "at least 1")
    _check_latency(keys.latency, device)
    cores = os.cpu_count() or 1
    _demand("threads", keys.threads, keys.threads is None or 1 <= keys.threads <= cores, f"at least 1, at most {cores} here")


def _check_latency(plan: LatencyPlan, device: str) -> None:
    """Numbers are more than 0, words are known, and the device has units for the precisions that are asked for."""
    for name, value in asdict(plan).items():
        for number in value if isinstance(value, list) else [value]:
            unbounded = isinstance(number, str | None) or name == "limits" or (name == "energy_seconds" and number == 0)
            _demand(f"latency.{name}", value, unbounded or number > 0, "more than 0")
    for mode in plan.modes:
        _choice("latency.modes", mode, {"eager", "compile", "onnx"})
    for dtype in plan.dtypes or ():
        _choice("latency.dtypes", dtype, {"float32", "bfloat16", "float16"})
        if dtype not in machine.dtypes(device):
            raise UserError(f"latency.dtypes={plan.dtypes}: this {device} has no units for {dtype}, leave it out")


def check_task(name: str, task: Task) -> None:
    """A task's YAML: columns, labels, metrics and constants fit each other."""
    where, labels = f"task {name}: ", task.labels
    _choice(f"{where}kind", task.kind, set(KINDS))
    kind = KINDS[task.kind]
    columns = [*task.columns, task.label]
    _demand(f"{where}columns", task.columns, len(task.columns) in (1, 2), "a model reads one text column or a pair")
    _demand(f"{where}columns and label", columns, len(set(columns)) == len(columns), "every column has a name of its own")
    names_are_good = labels is None or (len(labels) > 1 and len(set(labels)) == len(labels))
    _demand(f"{where}labels", labels, names_are_good, "at least two different names, or null for a regression")
    for metric in task.metrics:
        _choice(f"{where}metrics", metric, set(kind.metrics))
    if task.score not in task.metrics:
        raise UserError(f"{where}score={task.score} is not among its metrics{nearest(task.score, task.metrics)}")
    if wrong := kind.check(task):
        key, value, good, expected = wrong
        _demand(f"{where}{key}", value, good, expected)
    _demand(f"{where}length", task.length, task.length > 0, "the mean number of tokens of an example, more than 0")
    _demand(f"{where}max_length", task.max_length, task.max_length >= 3, "a number of tokens, at least 3")
    _demand(f"{where}batch", task.batch, task.batch >= 1, "at least 1")
    _demand(f"{where}tuning.epochs", task.tuning.epochs, task.tuning.epochs > 0, "more than 0")
    _at_least_one(f"{where}tuning.max_tokens", task.tuning.max_tokens)
    words = task.label_words
    fitting = words is None or (len(words) == task.outputs and len(set(words)) == len(words))
    _demand(f"{where}label_words", words, fitting, f"{task.outputs} different words, one for each output, or null")


def check_model(name: str, model: Model) -> None:
    """A model's YAML: where its base weights come from, and its recipe."""
    where, base = f"model {name}: ", model.base
    _choice("model.weights", model.weights or "random", {"random"})
    if model.weights:
        _demand("model.weights", model.weights, model.path is None, "model.path= names weights, leave one of them out")
        _demand(f"{where}base.shape", base.shape, bool(base.shape or base.random), "model.weights=random needs its config's fields")
    _choice(f"{where}attention", model.attention, {"eager", "sdpa"})
    steps = model.arch.head or model.arch.output
    _demand(f"{where}arch.head", steps, bool(steps), "the steps from the last hidden state to the logits")
    parts = model.arch.language_head
    _demand(f"{where}arch.language_head", parts, len(parts) in (0, 3), "its dense layer, norm and decoder, or nothing")
    hashed = base.sha256 is not None and (base.folder or base.gguf) is not None
    _demand(f"{where}base.packages", base.packages, hashed or not base.packages, "they need folder or gguf, and sha256")
    _check_tuning(f"{where}tuning.", model.tuning)


def check_pair(task_name: str, task: Task, model_name: str, model: Model) -> None:
    """The model is of a family that can do such a task."""
    if lacking := KINDS[task.kind].fits(model.arch):
        raise UserError(f"task={task_name}: {model_name} {lacking}; choose another model=")


def _check_tuning(where: str, tuning: ModelTuning) -> None:
    _demand(f"{where}learning_rate", tuning.learning_rate, tuning.learning_rate > 0, "more than 0")
    _demand(f"{where}batch", tuning.batch, tuning.batch >= 1, "at least 1")
    _demand(f"{where}warmup", tuning.warmup, 0 <= tuning.warmup < 1, "a share of the steps, in [0, 1)")
    _demand(f"{where}weight_decay", tuning.weight_decay, tuning.weight_decay >= 0, "at least 0")
    _at_least_one(f"{where}max_tokens", tuning.max_tokens)


def _demand(key: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"{key}={value:g}: {wanted}" if isinstance(value, float) else f"{key}={value}: {wanted}")


def _at_least_one(key: str, value: int | None) -> None:
    _demand(key, value, value is None or value >= 1, "at least 1, or null")


def _choice(key: str, value: str, known: set[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value}{nearest(value, known)}")


def unit_of(name: str, keys: Keys, usual: str, own: Any) -> str:
    """What the ratio counts; `usual`: what the task's YAML says; `own`: what the method's YAML's `_unit_` says that it removes, None for
    heads and neurons."""
    _choice(f"method {name}: _unit_", str(own or "weights"), {"weights"})
    if own and keys.unit not in ("auto", own):
        raise UserError(f"unit={keys.unit}: {name} removes single {own}, leave unit= out")
    if own and keys.recover.epochs:
        raise UserError(f"recover.epochs={keys.recover.epochs:g}: it fine-tunes models that lost heads and neurons, {name} removes weights")
    return str(own or usual) if keys.unit == "auto" else keys.unit


def check_processes(run: Run) -> None:
    """Several processes train, and share every update evenly."""
    if run.trains or run.recover:
        processes.share(run.model.tuning.batch, run.keys.accumulate)
    elif processes.world() > 1:
        raise UserError(f"{run.method} does not train: run it in one process, without torchrun")


def checked_fields(name: str, given: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The fields of a method against its YAML: the same names, and kinds of value that fit, without importing it. Returns them, numbers
    spelled as in the YAML: 64 and 64.0 are one value.

    Where the method's source annotates a field with plain kinds (`float | str`) these count, else its YAML's default.
    """
    target = reference.get("_target_")
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        raise UserError(f"method {name}: its YAML needs _target_, the dotted path of a class such as mine.MyMethod")
    annotated, fields = _annotations(target), dict[str, Any]()
    for key, value in given.items():
        if key not in reference:
            raise UserError(f"method {name} has no field {key!r}{nearest(key, set(reference) - {'_target_', '_unit_'})}")
        kinds = annotated.get(key) or {_kind(reference[key])}
        if kinds <= set(VALUES) and kinds != {"None"} and not _fits(value, kinds):
            expected = " or ".join(VALUES[kind] for kind in sorted(kinds))
            raise UserError(f"method.{key}={value!r}: expected {expected}, for example {reference[key]!r}")
        fields[key] = reference[key] if _same(value, reference[key]) else _spelled(value, kinds, reference[key])
    return fields


def _same(one: Any, other: Any) -> bool:
    """Equal, and neither a truth where the other is a number."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _spelled(value: Any, kinds: set[str], reference: Any) -> Any:
    """A number as the YAML spells its field: a whole one as 64.0 where the YAML has a float, or has none in a field of floats."""
    if isinstance(value, list):
        return [_spelled(entry, kinds, None) for entry in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not value.is_integer()):
        return value
    words = set(re.findall(r"\w+", " ".join(kinds)))
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        return type(reference)(value)
    return float(value) if "float" in words and "int" not in words else int(value)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _fits(value: Any, kinds: set[str]) -> bool:
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        return False
    return _kind(value) in kinds or (_kind(value) == "int" and "float" in kinds)


def _annotations(target: str) -> dict[str, set[str]]:
    """The kinds that a class's source annotates its fields with, read by ast."""
    fields = [node for node in _body(target) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: set(ast.unparse(node.annotation).split(" | ")) for node in fields}  # type: ignore[union-attr]


def declares(target: str, what: str) -> bool:
    """Whether a method's class says `what = True`, read by ast: of `training` the recipe is then part of what a run means, of
    `pretrained` the base's weights."""
    assigned = [node for node in _body(target) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
    told = [ast.unparse(node.value) for node in assigned if what in _names(node)]  # type: ignore[arg-type]
    return told[-1:] == ["True"]


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    return [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]


def _body(target: str) -> list[ast.stmt]:
    """The statements of a class, from its module's source."""
    module, _, name = target.rpartition(".")
    try:
        tree = ast.parse(plugin.source(module) or "")
    except (SyntaxError, ValueError, RecursionError):
        return []  # told when the method is imported
    return [line for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name for line in node.body]


def check_results(given: str, machine: str) -> Path:
    """The results folder and the machine's in it can be written, or made; nothing is made yet. Returns the former."""
    root = _named_place("results", given)
    _check_writable("results", given, place(root / machine, "results="))
    return root


def check_save(given: str, results: Path, many: bool) -> Path:
    """The folder that `save=` names can be made, and is empty or holds an earlier saved model; nothing is made yet.

    `many`: it is the folder of a multirun's models, each in a folder of its own. Returns it, links followed.
    """
    target = Path(os.path.realpath(_named_place("save", given)))
    root = Path(os.path.realpath(results))
    if target == root or target in root.parents or root in target.parents:
        raise UserError(f"save={given}: models and records need folders of their own, and results= is {results}")
    # to make a folder, or to put another in its place, what is above it is written to
    _check_writable("save", given, target if many or not target.is_dir() else target.parent)
    if not many:
        check_free(target, f"save={given}")
    elif (target / FACTS_FILE).exists():
        raise UserError(f"save={given} is a saved model: a multirun makes a folder for each of its models, name another")
    return target


def check_source(given: str, target: Path, source: Path, many: bool) -> None:
    """The folder that a run saves its model in, or a multirun its models, would not replace the dense checkpoint."""
    real = Path(os.path.realpath(source))
    if real == target or (many and target == real.parent):
        raise UserError(f"save={given} would replace the dense checkpoint {source}: name another folder")


def check_free(target: Path, named: str) -> None:
    """The folder is not there, or empty, or an earlier saved model and nothing else, which may be replaced."""
    if not target.is_dir():
        return
    names = {path.name for path in target.iterdir()}
    if names and FACTS_FILE not in names:
        raise UserError(f"{named} holds other files: name a new folder, an empty one, or that of an earlier saved model")
    if others := sorted(names - set(SAVED_FILES)):
        raise UserError(f"{named} would be replaced, but holds {others[0]} beside the saved model: name another folder")


def _named_place(key: str, given: str) -> Path:
    if not given.strip():
        raise UserError(f"{key}= is empty: name a folder, or leave it out")
    return place(given, f"{key}=")


def _check_writable(key: str, given: str, target: Path) -> None:
    """The folder can be written, or made below what there is."""
    above = target
    while not os.path.lexists(above):
        above = above.parent
    named = f"{key}={given}: {'it' if above == place(given) else above}"
    if not above.is_dir():
        raise UserError(f"{named} is a file, not a folder")
    # the mode is asked as well: to root every folder looks writable
    if not os.access(above, os.W_OK | os.X_OK) or not above.stat().st_mode & 0o222:
        raise UserError(f"{named} is read-only")
