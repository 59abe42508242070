"""How long events wait from accepted to stored, counted in steps, so that percentiles need no list of all of them."""

from bisect import bisect_left
from collections.abc import Mapping

#: Upper ends of the steps in milliseconds: six a decade, the preferred numbers of IEC 60063 (E6), so that a percentile
#: read off them is some 20 % out at most. The last one holds all that took longer.
STEPS: tuple[int, ...] = (
    *(round(step * 10.0**power) for power in range(1, 7) for step in (1, 1.5, 2.2, 3.3, 4.7, 6.8)),
    86_400_000,
)


def step(milliseconds: float) -> int:
    """The upper end of the step that a delay falls into."""
    return STEPS[min(bisect_left(STEPS, milliseconds), len(STEPS) - 1)]


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The delay in milliseconds that the given share of events did not exceed, None where there were no events.

    Args:
        counts: events by the upper end of their step.
        share: 0.5 is the median, 0.99 what all but one in a hundred stayed under.
    """
    wanted = share * sum(counts.values())
    passed = 0
    for index, end in enumerate(STEPS):
        count = counts.get(end, 0)
        if count and passed + count >= wanted:
            begin = STEPS[index - 1] if index else 0
            return begin + (end - begin) * (wanted - passed) / count
        passed += count
    return None
