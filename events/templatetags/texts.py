"""Texts of publishers, for people."""

import re

from django import template

register = template.Library()

#: Control characters, line and paragraph separators, and what turns the direction of writing (Unicode TR 9).
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@register.filter
def visible(text: str) -> str:
    """Writes out what nobody would see, and what would make other text read differently: U+202E as \\u202e."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
