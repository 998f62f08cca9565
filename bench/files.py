"""Small things about files: the cache folder, digests, whole-or-absent writes."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.errors import UserError

_HERE = Path(__file__).resolve().parent
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout


def cache_folder() -> Path:
    """`$BENCH_CACHE`, else `prunebench` in the user's cache folder."""
    given = os.environ.get("BENCH_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunebench"


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
