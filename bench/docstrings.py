"""The embedded task `docstrings`: which library does the first paragraph of a docstring come from?

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
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.files import whole_folder
from bench.stages import progress, say

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
VERSION = 1
GIVEAWAYS = re.compile(
    r"\b(matplotlib|mpl|pyplot|plt|numpy|np|pandas|pd|c?python|scikit-learn|scikit|sklearn|scipy|(py)?torch\w*|"
    r"transformers|hugging ?face|ndarrays?|dataframes?|tensors?|axes|artists?|estimators?|nn|aten|cuda|tokenizers?)\b",
    re.IGNORECASE,
)


def build(cache: Path) -> tuple[Path, str]:
    """Make (or find) the folder with both splits. Returns it and what it was built from."""
    pins = {"python": platform.python_version()}
    pins |= {name: importlib.metadata.version(name) for name, package in LIBRARIES.items() if package}
    source = f"docstrings {VERSION} of " + ", ".join(f"{name} {version}" for name, version in pins.items())
    target = cache / f"docstrings-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if not target.exists():
        say("building the task docstrings from the packages that are installed")
        whole_folder(target, _write)
    return target, source


def _write(folder: Path) -> None:
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "validation": []}
    for label, package in enumerate(progress(LIBRARIES.values(), "reading docstrings")):
        for split, texts in _collect(_root(package)).items():
            rows[split] += [(text, label) for text in texts]
    seen = Counter(text for split in rows.values() for text, _ in split)
    for split, examples in rows.items():
        unique = sorted((row for row in examples if seen[row[0]] == 1), key=lambda row: _hash(row[0]))
        table = pa.table({"text": [text for text, _ in unique], "label": pa.array([label for _, label in unique], pa.int32())})
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")


def _root(package: str) -> Path:
    if not package:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _collect(root: Path) -> dict[str, list[str]]:
    """Masked first paragraphs by split, files in an order that only their names decide, until the caps are reached."""
    taken: dict[str, dict[str, None]] = {"train": {}, "validation": {}}
    caps = {"train": TRAIN, "validation": VALIDATION}
    skip = {"site-packages", "dist-packages", "tests", "test", "idlelib", "lib2to3", "__pycache__", "_vendor", "externals"}
    files = [path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts)]
    for path in sorted(files, key=lambda path: _hash(path.relative_to(root).as_posix())):
        split = "validation" if int(_hash(path.relative_to(root).as_posix())[-4:], 16) % 5 == 0 else "train"
        if len(taken[split]) < caps[split]:
            texts = list(_paragraphs(path))
            taken[split] |= dict.fromkeys(texts[: caps[split] - len(taken[split])])
        if all(len(taken[split]) >= caps[split] for split in caps):
            break
    return {split: list(texts) for split, texts in taken.items()}


def _paragraphs(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "", maxsplit=1)[0]
            text = GIVEAWAYS.sub("it", " ".join(paragraph.split()))
            if LEAST_WORDS <= len(re.findall(r"[A-Za-z]{2,}", text)) <= MOST_WORDS:
                yield text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
