"""Numbers as the page writes them."""

from typing import Any

import pandas as pd

NONE = "–"


def tokens(thousands: float) -> str:
    """A number of tokens from thousands of them."""
    return spaced(round(1000 * thousands))


def spaced(count: int) -> str:
    """A whole number with a thin gap between thousands."""
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")


def shown(value: Any, form: str) -> str:
    """A number, never minus zero, or a dash where there is none."""
    if pd.isna(value):
        return NONE
    return f"{value:{form}}" if form == "d" else f"{round(float(value), 4) + 0.0:{form}}"


def within(value: Any, low: Any, high: Any, form: str) -> str:
    """A number with its interval, where it has one."""
    interval = "" if pd.isna(low) or pd.isna(high) else f" [{shown(low, form)}, {shown(high, form)}]"
    return shown(value, form) + interval
