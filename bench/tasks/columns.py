"""Columns of a parquet file, read and checked; what is wrong is named with its row."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.errors import UserError


def texts(column: pa.ChunkedArray, where: str) -> list[str]:
    """Texts, none missing.

    Raises:
        UserError: it holds something else.
    """
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where} holds {column.type}, not text")
    no_nulls(column, where)
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 in row {_first_undecodable(column)}") from error


def _first_undecodable(column: pa.ChunkedArray) -> int:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    raise AssertionError("every row can be decoded")


def no_nulls(column: pa.ChunkedArray, where: str) -> None:
    """Raise UserError where a row is empty."""
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{where} is empty in row {row}")


def numbered(names: Sequence[str | None]) -> NDArray[np.int64]:
    """The number of each name, in the order in which they first appear."""
    numbers: dict[str | None, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def answers(column: pa.ChunkedArray, contexts: list[str], unanswerable: bool, where: str) -> list[tuple[list[str], list[int]]]:
    """Gold answers; every one stands in its context where it says."""
    no_nulls(column, where)
    kind = column.type
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if not (_lists(fields.get("text"), "text") and _lists(fields.get("answer_start"), "whole numbers")):
        raise UserError(f"{where} holds {kind}, answers are structures of text and answer_start, lists of texts and of whole numbers")
    result = []
    for row, (entry, context) in enumerate(zip(column.to_pylist(), contexts, strict=True)):
        if not (entry["text"] or unanswerable):
            raise UserError(f"{where}: row {row} has no answer, which only a task with windows.unanswerable=true allows")
        texts, starts = list(entry["text"] or ()), list(entry["answer_start"] or ())
        if len(texts) != len(starts) or not all(map(partial(_stands, context), texts, starts)):
            raise UserError(f"{where}: the answers in row {row} do not stand in the context where answer_start says")
        result.append((texts, starts))
    return result


def _lists(kind: pa.DataType | None, of: str) -> bool:
    """Whether a column's kind is lists of text, or of whole numbers; of null where all lists are empty."""
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    values = kind.value_type
    text = pa.types.is_string(values) or pa.types.is_large_string(values)
    return bool(pa.types.is_null(values) or (text if of == "text" else pa.types.is_integer(values)))


def _stands(context: str, text: str | None, at: int | None) -> bool:
    """Whether an answer stands in its context where it says."""
    return text is not None and at is not None and at >= 0 and context[at : at + len(text)] == text


def numbers(column: pa.ChunkedArray, where: str) -> NDArray[np.float64]:
    """Finite numbers.

    Raises:
        UserError: it holds something else.
    """
    no_nulls(column, where)
    if not (_whole(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"{where} holds {column.type}, a regression needs numbers")
    values = column.to_numpy().astype(np.float64)
    return _all_rows(values, np.isfinite(values), where, "a finite number")


def classes(column: pa.ChunkedArray, labels: Sequence[str], where: str) -> NDArray[np.int64]:
    """Class numbers, from themselves or from the labels' names.

    Raises:
        UserError: it holds something else.
    """
    no_nulls(column, where)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        names = np.array(texts(column, where), dtype=object)
        index = {name: i for i, name in enumerate(labels)}
        indices = np.array([index.get(name, -1) for name in names], dtype=np.int64)
        _all_rows(names, indices >= 0, where, f"one of {', '.join(labels)}")
        return indices
    if not _whole(kind):
        raise UserError(f"{where} holds {kind}, a classification needs class numbers or names")
    found = column.to_numpy().astype(np.int64)
    return _all_rows(found, (found >= 0) & (found < len(labels)), where, f"a class number from 0 to {len(labels) - 1}")


def _whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _all_rows(values: np.ndarray, good: NDArray[np.bool_], where: str, wanted: str) -> np.ndarray:
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(f"{where} is {values[row]} in row {row}, expected {wanted}")
    return values
