"""A saved model for other runtimes: `python -m bench.export DIR OUT.onnx|OUT.pt2`, ONNX or a program of torch.export.

Batch and length are free. An export is compared with the model's own logits before it is put in place.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import command
from bench.errors import UserError, first_line
from bench.files import place, sync
from bench.tasks import KINDS

if TYPE_CHECKING:
    from torch import Tensor, nn

HELP = """python -m bench.export DIR OUT.onnx|OUT.pt2   a saved model as ONNX, or as a program of torch.export
  Inputs input_ids, attention_mask and, where the model tells segments apart, token_type_ids, int64 [batch, length];
  outputs logits [batch, outputs], or of questions start_logits and end_logits [batch, length]. Batch and length are free.
  The export is compared with the model's own logits before it is put in place. ONNX: pip install 'prunebench[export]'."""
ENDINGS = (".onnx", ".pt2")
TOLERANCE = 1e-4
LARGEST = 2**31 - 2**20  # bytes of weights in one ONNX file: protobuf ends at 2 GiB
OPSET = 18
Inputs = Mapping[str, "Tensor"]
Forward = Callable[[Inputs], list["Tensor"]]


def export(folder: str | Path, out: str | Path) -> tuple[float, list[Path]]:
    """Export a saved model to one file by its ending. Returns the largest difference of a logit, and the files: weights
    of more than 2 GB lie in a second one beside an ONNX file.

    Raises:
        UserError: the folder is no saved model, the file cannot be written, or the packages for ONNX are not there.
        ValueError: the export computes something else than the model.
    """
    target = check_target(out)
    from bench.saved import checkpoint

    saved = checkpoint.read(folder)
    module, outputs = checkpoint.load(folder), KINDS[saved.facts.kind].output_names
    write, read = (write_onnx, read_onnx) if target.suffix == ".onnx" else (write_program, read_program)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}-", dir=target.parent) as half:
        file = Path(half) / target.name
        write(module, outputs, file, saved.positions)
        difference = largest_difference(module, outputs, read(file), saved.positions)
        if not difference < TOLERANCE:
            raise ValueError(f"the export's logits differ from the model's by {difference:.3g}, more than {TOLERANCE:g}: it is not kept")
        # what a file refers to comes first
        files = sorted(Path(half).iterdir(), key=lambda path: path == file)
        for path in files:
            sync(path)
            path.chmod(0o644)
            os.replace(path, target.parent / path.name)
    return difference, [target.parent / path.name for path in reversed(files)]


def check_target(out: str | Path) -> Path:
    """Where an export goes: a file's name with a known ending in a folder that can be written."""
    target = place(out)
    if target.suffix not in ENDINGS:
        raise UserError(f"{out}: name a file that ends in {' or '.join(ENDINGS)}")
    if target.is_dir():
        raise UserError(f"{out} is a folder: name a file in it")
    if not target.parent.is_dir():
        raise UserError(f"{out}: {target.parent} is not a folder")
    if not os.access(target.parent, os.W_OK | os.X_OK) or not target.parent.stat().st_mode & 0o222:
        raise UserError(f"{out}: {target.parent} is read-only")
    if target.suffix == ".onnx":
        check_packages()
    return target


def check_packages() -> None:
    """Raise UserError unless what ONNX needs is installed."""
    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(lacking)}: pip install 'prunebench[export]'")


def input_names(module: "nn.Module") -> list[str]:
    """The inputs that an exported model takes: segments where the model tells them apart."""
    from bench.tasks.encoding import tells_segments_apart

    return ["input_ids", "attention_mask", *(["token_type_ids"] if tells_segments_apart(module.config) else [])]


def plain(module: "nn.Module", outputs: Sequence[str]) -> "nn.Module":
    """The model as a module of tensors: the inputs by name, the named outputs in a tuple."""
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            out = self.module(input_ids=input_ids, attention_mask=attention_mask, **segments)
            return tuple(out[name] for name in outputs)

    return Plain().eval()


def write_program(module: "nn.Module", outputs: Sequence[str], file: Path, positions: int) -> None:
    """As a program of torch.export, which `torch.export.load(file).module()(**inputs)` runs."""
    import torch

    example = examples(module, [8, 5], positions)
    with _quiet(), torch.no_grad():
        program = torch.export.export(plain(module, outputs), (), dict(example), dynamic_shapes=_dynamic(example, positions))
        torch.export.save(program, file)


def read_program(file: Path) -> Forward:
    """The program of a .pt2 file as a function."""
    import torch

    with _quiet():
        forward = torch.export.load(file).module()
    return lambda inputs: list(forward(**inputs))


def write_onnx(module: "nn.Module", outputs: Sequence[str], file: Path, positions: int, inputs: Sequence[str] | None = None) -> None:
    """As ONNX; with weights that one file cannot hold, these go into `<file>.data` beside it. `inputs`: not all of them."""
    import torch

    example = {name: tensor for name, tensor in examples(module, [8, 5], positions).items() if inputs is None or name in inputs}
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            plain(module, outputs),
            (),
            str(file),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_dynamic(example, positions),
            input_names=list(example),
            output_names=list(outputs),
            external_data=size > LARGEST,
            verbose=False,
        )


def read_onnx(file: Path, threads: int | None = None) -> Forward:
    """An ONNX file as a function: a session of onnxruntime on the CPU."""
    import torch

    session = _session(file, threads)
    return lambda inputs: [
        torch.from_numpy(array) for array in session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    ]


def onnx_runner(module: "nn.Module", outputs: Sequence[str], names: Sequence[str], threads: int) -> Callable[[Inputs], Callable[[], Any]]:
    """A float32 model in onnxruntime on the CPU, on so many threads: of a batch, a function that runs one forward pass.

    `outputs` are the names of what it gives, `names` those of the inputs [B, T] that batches will have. The export is that of
    `export`, batch and length free.

    Raises:
        UserError: the packages for ONNX are not there, or torch cannot export the model.
    """
    check_packages()
    config: Any = module.config
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(module, outputs, file, config.max_position_embeddings, list(names))
        session = _session(file, threads)  # reads all of it: the file may go

    def prepared(batch: Inputs) -> Callable[[], Any]:
        given = {name: batch[name].numpy() for name in input_names(module) if name in names}
        return lambda: session.run(None, given)

    return prepared


def _session(file: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # as bench.machine.settle has torch do
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def examples(module: "nn.Module", lengths: Sequence[int], positions: int, seed: int = 0) -> dict[str, "Tensor"]:
    """A batch of ordinary token ids, examples of these lengths (at most `positions`), padded on the right: int64 [B, T]."""
    import torch

    config: Any = module.config
    lengths = [min(length, positions) for length in lengths]
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    found = {"input_ids": torch.where(mask.bool(), ids, config.pad_token_id or 0), "attention_mask": mask}
    if "token_type_ids" in input_names(module):
        found["token_type_ids"] = torch.randint(0, config.type_vocab_size, mask.shape, generator=generator) * mask
    return found


def largest_difference(module: "nn.Module", outputs: Sequence[str], forward: Forward, positions: int) -> float:
    """The largest difference between a model's outputs and those of its export, as a share of the largest output where
    that is more than 1, over batches of several sizes, lengths and paddings."""
    import torch

    found: list[float] = []
    for seed, lengths in enumerate(([1], [17], [positions], [7, 3, 2], [12] * 5, [33, 64, 1, 9])):
        inputs = examples(module, lengths, positions, seed)
        with torch.no_grad():
            expected = plain(module, outputs)(**inputs)
        real = inputs["attention_mask"].bool()
        for wanted, given in zip(expected, forward(inputs), strict=True):
            if given.shape != wanted.shape:
                return float("inf")
            apart = (wanted - given).abs() / wanted.abs().max().clamp(min=1)
            found.append(float((apart[real] if apart.shape == real.shape else apart).max()))
    return max(found) if all(number == number for number in found) else float("nan")


def _dynamic(example: Inputs, positions: int) -> dict[str, Any]:
    from torch.export import Dim

    batch, length = Dim("batch"), Dim("length", max=positions)
    return {name: {0: batch, 1: length} for name in example}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which a user can do nothing about; what they cannot do is one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise UserError(f"torch cannot export this model: {type(error).__name__}: {first_line(error)}") from error
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the saved model that is named; 1 where something is wrong, told in a sentence."""
    return command.run(_command, HELP, arguments)


def _command(words: list[str]) -> None:
    if len(words) != 2:
        raise UserError("name a saved model's folder and a file: python -m bench.export DIR OUT.onnx|OUT.pt2")
    try:
        difference, files = export(*words)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    except OSError as error:
        raise UserError(f"{words[1]} cannot be written: {error.strerror or first_line(error)}") from error
    print(f"exported: {files[0]}, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB; logits differ by at most {difference:.2g}")
    if files[1:]:
        print(f"its weights are in {', '.join(path.name for path in files[1:])}: keep the files together")


if __name__ == "__main__":
    sys.exit(main())
