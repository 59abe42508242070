"""The figures of a run: each with its unit, what it was in every run, and its target."""

from statistics import median
from typing import Literal

from msgspec import Struct


class Figure(Struct, omit_defaults=True):
    """One figure of the table. Its value is the median of its runs."""

    name: str
    unit: str
    runs: list[float]
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"

    @property
    def value(self) -> float:
        return median(self.runs)

    @property
    def met(self) -> bool | None:
        """Whether the target is met, None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


class Row(Struct):
    """What one row of the benchmark measured, and what has to be known to read it."""

    name: str
    title: str
    figures: list[Figure]
    notes: list[str]


class Result(Struct):
    """A whole run of the benchmark."""

    started: str
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]
    options: dict[str, str]
    rows: list[Row]


def shown(value: float, unit: str) -> str:
    """A figure as people read it."""
    if unit == "":
        return f"{value:.2f}"
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def wanted(figure: Figure) -> str:
    """The target as people read it."""
    if figure.target is None:
        return ""
    return f"{'≥' if figure.bound == 'at least' else '≤'} {shown(figure.target, figure.unit)}"


def verdict(figure: Figure) -> str:
    return {None: "", True: "ok", False: "below" if figure.bound == "at least" else "above"}[figure.met]
