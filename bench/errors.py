"""What a user can do wrong, told in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong and what to type instead."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of the known words, else `; choose from ...`."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.7)  # gpu is not cpu
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(known)}" if known else ""
