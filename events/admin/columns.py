"""Cells that several lists share. All of them escape what they are given."""

from datetime import datetime

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString


def link(model: str, pk: int, text: object) -> SafeString:
    """A link to the page of a row."""
    return format_html('<a class="key" href="{}">{}</a>', reverse(f"admin:events_{model}_change", args=[pk]), text)


def moment(at: datetime | None) -> SafeString:
    """A moment in UTC, to the second; its title has the microseconds."""
    if at is None:
        return SafeString("–")
    iso = at.isoformat()
    return format_html('<time datetime="{}" title="{}">{}</time>', iso, iso, f"{at:%Y-%m-%d %H:%M:%S}")


def number(count: int) -> SafeString:
    """A number with thin gaps between thousands, set in columns."""
    return format_html('<span class="number">{}</span>', f"{count:,}")
