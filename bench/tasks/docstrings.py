"""The embedded tasks. `docstrings`: which library does the first paragraph of a docstring come from? `docstrings-search`: which
docstring does it come from?

Real English that is on the machine already: docstrings of installed packages and of Python's own library, read by
`ast`, never imported. Names that give the library away are masked, duplicates removed, and the splits made by file, so
that siblings do not leak. The same versions give the same bytes.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bench.files import whole_folder
from bench.stages import progress, say

T = TypeVar("T", bound=Any)
LIBRARIES = {  # label: package
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pandas": "pandas",
    "python": "",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "torch": "torch",
    "transformers": "transformers",
}
TRAIN, VALIDATION = 1300, 320  # at most so many of a library
LEAST_WORDS, MOST_WORDS = 6, 60
QUERIES = 252  # of a library in each split of docstrings-search, so that some 2 000 documents are left to choose from
LEAST_OF_REST, MOST_OF_REST = 15, 40  # words
VERSION = 1
GIVEAWAYS = re.compile(
    r"\b(matplotlib|mpl|pyplot|plt|numpy|np|pandas|pd|c?python|scikit-learn|scikit|sklearn|scipy|(py)?torch\w*|"
    r"transformers|hugging ?face|ndarrays?|dataframes?|tensors?|axes|artists?|estimators?|nn|aten|cuda|tokenizers?)\b",
    re.IGNORECASE,
)


def build(cache: Path) -> tuple[Path, str]:
    """Make (or find) the folder of the task docstrings with both splits. Returns it and what it was built from."""
    return _built(cache, "docstrings", _write)


def build_search(cache: Path) -> tuple[Path, str]:
    """The same for docstrings-search: first paragraphs and the rests of their docstrings."""
    return _built(cache, "docstrings-search", _write_pairs)


def _built(cache: Path, name: str, write: Callable[[Path], None]) -> tuple[Path, str]:
    pins = {"python": platform.python_version()}
    pins |= {name: importlib.metadata.version(name) for name, package in LIBRARIES.items() if package}
    source = f"{name} {VERSION} of " + ", ".join(f"{library} {version}" for library, version in pins.items())
    target = cache / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if not target.exists():
        say(f"building the task {name} from the packages that are installed")
        whole_folder(target, write)
    return target, source


def _write(folder: Path) -> None:
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "validation": []}
    for label, package in enumerate(progress(LIBRARIES.values(), "reading docstrings")):
        for split, texts in _collect(_root(package), _paragraphs, {"train": TRAIN, "validation": VALIDATION}).items():
            rows[split] += [(text, label) for text in texts]
    for split, examples in _unique(rows).items():
        labels = pa.array([label for _, label in examples], pa.int32())
        pq.write_table(pa.table({"text": [text for text, _ in examples], "label": labels}), folder / f"{split}.parquet", compression="zstd")


def _write_pairs(folder: Path) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for package in progress(LIBRARIES.values(), "reading docstrings"):
        for split, pairs in _collect(_root(package), _pairs, {"train": QUERIES, "validation": QUERIES}).items():
            rows[split] += pairs
    for split, examples in _unique(rows).items():
        names = ("query", "document")
        table = pa.table({name: [example[i] for example in examples] for i, name in enumerate(names)})
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")


def _unique(rows: dict[str, list[T]]) -> dict[str, list[T]]:
    """The rows whose first text no other row has, in an order that only the texts decide."""
    seen = Counter(row[0] for split in rows.values() for row in split)
    return {split: sorted((row for row in own if seen[row[0]] == 1), key=lambda row: _hash(row[0])) for split, own in rows.items()}


def _root(package: str) -> Path:
    if not package:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _collect(root: Path, read: Callable[[Path], Iterator[T]], caps: dict[str, int]) -> dict[str, list[T]]:
    """What files hold by split, files in an order that only their names decide, until the caps are reached."""
    taken: dict[str, dict[T, None]] = {"train": {}, "validation": {}}
    skip = {"site-packages", "dist-packages", "tests", "test", "idlelib", "lib2to3", "__pycache__", "_vendor", "externals"}
    files = [path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts)]
    for path in sorted(files, key=lambda path: _hash(path.relative_to(root).as_posix())):
        split = "validation" if int(_hash(path.relative_to(root).as_posix())[-4:], 16) % 5 == 0 else "train"
        if len(taken[split]) < caps[split]:
            texts = list(read(path))
            taken[split] |= dict.fromkeys(texts[: caps[split] - len(taken[split])])
        if all(len(taken[split]) >= caps[split] for split in caps):
            break
    return {split: list(texts) for split, texts in taken.items()}


def _paragraphs(path: Path) -> Iterator[str]:
    """Masked first paragraphs of a file's docstrings."""
    for first, _ in _docstrings(path):
        if LEAST_WORDS <= _words(first) <= MOST_WORDS:
            yield first


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """The same, each with the start of the rest of its docstring."""
    for first, rest in _docstrings(path):
        if LEAST_WORDS <= _words(first) <= MOST_WORDS and _words(rest) >= LEAST_OF_REST:
            yield first, " ".join(rest.split()[:MOST_OF_REST])


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """First paragraph and rest of each docstring, masked."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *rest = re.split(r"\n\s*\n", ast.get_docstring(node) or "", maxsplit=1)
            yield _masked(first), _masked(" ".join(rest))


def _masked(text: str) -> str:
    return GIVEAWAYS.sub("it", " ".join(text.split()))


def _words(text: str) -> int:
    return len(re.findall(r"[A-Za-z]{2,}", text))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
