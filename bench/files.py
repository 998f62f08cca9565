"""Small things about files: the cache folder, digests, whole-or-absent writes."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from bench.errors import UserError, first_line

_HERE = Path(__file__).resolve().parent
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout


def cache_folder() -> Path:
    """`$BENCH_CACHE`, else `prunebench` in the user's cache folder."""
    given = os.environ.get("BENCH_CACHE")
    if given:
        path = place(given, "BENCH_CACHE=")
        if path.exists() and not path.is_dir():
            raise UserError(f"BENCH_CACHE={given} is a file, not a folder")
        return path
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunebench"


def place(given: str | Path, key: str = "") -> Path:
    """A path that a user named, `~` expanded; it may lead to nothing, but the way there can be looked at.

    Raises:
        UserError: there is no such user, a name is too long, a folder on the way is closed, a link leads nowhere.
    """
    try:
        path = Path(given).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{key}{str(given)[:80]}: {getattr(error, 'strerror', None) or first_line(error)}") from error
    if path.is_symlink() and not path.exists():
        raise UserError(f"{key}{given} is a link that leads nowhere")
    return path


def place_of(variable: str) -> Path | None:
    """The folder that an environment variable names, if it is set.

    Raises:
        UserError: as `place`, or it is no folder.
    """
    if not os.environ.get(variable):
        return None
    path = place(os.environ[variable], f"{variable}=")
    if not path.is_dir():
        raise UserError(f"{variable}={path} is not a folder")
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def whole_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder that is whole or absent: filled under a temporary name beside the target, then renamed.

    A target that another process has made in the meantime is kept.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write {target.parent}: {error.strerror}; set BENCH_CACHE to a folder that can be written") from error
    try:
        fill(half)
        half.chmod(0o755)
        half.rename(target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def keep_file(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is whole or absent: under a temporary name beside it, synced, then renamed.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as out:
        fill(out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(half, path)


def sync(path: Path) -> None:
    """What has been written to a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
