"""Query parameters, each given once: who misspells one is told so, and does not get the answer to another question."""

from collections.abc import Sequence

from django.http import QueryDict
from rest_framework.exceptions import ValidationError


def read_parameters(given: QueryDict, known: Sequence[str] = (), *, beginning: str = "") -> dict[str, str]:
    """The parameters of a request by name.

    Args:
        given: the query string.
        known: the names that this address understands.
        beginning: how further names begin that it understands; empty is none.

    Raises:
        ValidationError: one is not known, or given more than once; names it.
    """
    found: dict[str, str] = {}
    for name, values in given.lists():
        if name not in known and not (beginning and name.startswith(beginning)):
            names = [*known, *([f"{beginning}…"] if beginning else [])]
            there_are = f"there are {', '.join(names)}" if names else "this address takes none"
            raise ValidationError({"detail": f"{name} is not a parameter; {there_are}."})
        if len(values) > 1:
            raise ValidationError({"detail": f"{name} is given {len(values)} times; give it once."})
        found[name] = str(values[0])
    return found
