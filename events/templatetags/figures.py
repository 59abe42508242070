"""Figures for people: durations, shares."""

from django import template

register = template.Library()


@register.filter
def duration(seconds: float | None) -> str:
    """12 ms, 1.4 s, 3 min, 2 h, 5 days."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


@register.filter
def percent(share: float | None) -> str:
    """0.2 is 20 %; a share that is not nothing is never shown as 0 %."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{share * 100:.1f} %" if share < 0.1 and share else f"{share * 100:.0f} %"
