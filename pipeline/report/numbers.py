"""How numbers are written, in one place for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ABSENT = "–"
Format = Callable[[float | None], str]


def ms(value: float | None) -> str:
    """Milliseconds with about four significant digits, so that columns line up."""
    if value is None:
        return ABSENT
    decimals = [limit for limit in (100, 10, 1, 0.1, 0.01) if value < limit]
    return f"{value:.{1 + len(decimals)}f}"


def times(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}x"


def percent(share: float | None) -> str:
    """A share of 1 as percent, without the sign: the unit stands in the label."""
    return ABSENT if share is None else _with_minus(f"{100 * share:.2f}")


def count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def points(change: float | None) -> str:
    """A difference of two shares in percentage points, always signed."""
    if change is None:
        return ABSENT
    return _with_minus(f"{100 * change + 0.0:+.2f}")


def small(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2g}"


def with_interval(value: float | None, interval: Sequence[float] | None, form: Format) -> str:
    """ "1.852 (1.841 to 1.866)"; without the brackets where no interval is known."""
    if value is None or interval is None:
        return form(value)
    low, high = interval
    return f"{form(value)} ({form(low)} to {form(high)})"


def of_dense(pruned: float | None, dense: float | None) -> str:
    """A count and its share of the dense network's."""
    if pruned is None or not dense:
        return count(pruned)
    return f"{count(pruned)} ({pruned / dense:.1%})"


def _with_minus(text: str) -> str:
    """With the minus sign, which is as wide as a plus."""
    return text.replace("-", "−")


def yes(value: bool) -> str:
    return "yes" if value else "no"
