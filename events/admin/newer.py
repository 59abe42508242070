"""How many rows have come in since a list was shown, so that the list can offer them."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Max, Min, Model

from events.admin.filters import Filters, is_number

#: The parameter that asks for it: the number of a row; what is counted lies above it.
NEWER_THAN = "newer_than"
#: Rows that are counted at most; beyond it the list says "100+" and asks no more.
COUNTED = 100
#: Ids that one question looks at: some milliseconds, also where nearly none of them match. The next one goes on there.
LOOKED_AT = 20_000
#: Milliseconds between two questions of a list that is open and seen.
ASK_MILLISECONDS = 5000


def newest(model: type[Model]) -> int:
    """The largest id, 0 where there is none."""
    largest: int | None = model._default_manager.aggregate(newest=Max("pk"))["newest"]
    return largest or 0


def count_newer(model: type[Model], filters: Filters, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Counts the rows that the filters match above an id.

    Args:
        filters: what the list is filtered by.
        parameters: of the request, NEWER_THAN among them.

    Returns:
        `count`, at most COUNTED; `through`, the id up to which was looked and from which to go on; `most`, which is
        COUNTED.
    """
    given = parameters[NEWER_THAN]
    after = int(given) if is_number(given) else newest(model)
    if not after:
        # The list was empty. Where retention has removed all that there was, the first id is far beyond.
        after = (model._default_manager.aggregate(first=Min("pk"))["first"] or 1) - 1
    through = min(newest(model), after + LOOKED_AT)
    count = 0
    if after < through and filters.is_valid():
        found = filters.narrow(model._default_manager.all(), after=after).filter(pk__lte=through)
        # In the order of ids, so that SQLite goes along these and not along a window of time.
        count = len(found.order_by("pk").values_list("pk", flat=True)[:COUNTED])
    return {"count": count, "through": max(after, through), "most": COUNTED}
