"""Draws a small line of counts as SVG."""

from collections.abc import Sequence

from django.utils.html import format_html
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 120, 24


def sparkline(counts: Sequence[int], title: str) -> SafeString:
    """An area under the counts, scaled to the largest. Nothing but a base line where all are zero."""
    top = max([*counts, 1])
    apart = WIDTH / max(1, len(counts) - 1)
    points = [
        f"{index * apart:.1f},{HEIGHT - 1 - count / top * (HEIGHT - 3):.1f}" for index, count in enumerate(counts)
    ]
    return format_html(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="none"><title>{}</title>'
        '<polygon points="0,{} {} {},{}"/><polyline points="{}"/></svg>',
        WIDTH, HEIGHT, title, title, HEIGHT, " ".join(points), WIDTH, HEIGHT, " ".join(points),
    )  # fmt: skip
