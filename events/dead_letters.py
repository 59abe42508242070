"""What becomes of dead letters: batches whose events could not be stored are tried again, or given up for good.

The books stay exact: a batch's events move from failed to pending, or from failed to discarded, in one statement.
"""

from collections.abc import Collection, Iterator

from django.db.models import Q
from django.utils import timezone

from events.inbox import ring
from events.models import Batch
from events.store import LOOK_UP_IDS
from events.turn import writing


def replay(batches: Collection[int] | None = None) -> list[int]:
    """Puts dead letters back into the inbox, with all their attempts before them, and rings.

    A discarded batch can be replayed as well: its body is kept, so that giving one up by mistake loses nothing.

    Args:
        batches: their numbers; None is every dead letter, and none that was discarded.

    Returns:
        The numbers of those that are pending again, in ascending order.
    """
    if batches is None:
        chosen_by = Q(status=Batch.Status.FAILED)
    else:
        chosen_by = Q(status__in=[Batch.Status.FAILED, Batch.Status.DISCARDED], pk__in=batches)
    replayable = Batch.objects.filter(chosen_by, processed_at=None)
    with writing():
        chosen = list(replayable.order_by("pk").values_list("pk", flat=True).select_for_update())
        for some in _slices(chosen):
            Batch.objects.filter(pk__in=some).update(
                status=Batch.Status.PENDING, attempts=0, next_attempt_at=timezone.now()
            )
    if chosen:
        ring()
    return chosen


def discard(batches: Collection[int] | None = None) -> list[int]:
    """Gives dead letters up: their events count as discarded and are not tried again.

    Args:
        batches: their numbers; None is every dead letter.

    Returns:
        The numbers of those that were dead letters and are discarded now, in ascending order.
    """
    dead = Batch.objects.filter(processed_at=None, status=Batch.Status.FAILED)
    if batches is not None:
        dead = dead.filter(pk__in=batches)
    with writing():
        chosen = list(dead.order_by("pk").values_list("pk", flat=True).select_for_update())
        for some in _slices(chosen):
            Batch.objects.filter(pk__in=some).update(status=Batch.Status.DISCARDED)
    return chosen


def _slices(numbers: list[int]) -> Iterator[list[int]]:
    """As many as one statement takes."""
    for begin in range(0, len(numbers), LOOK_UP_IDS):
        yield numbers[begin : begin + LOOK_UP_IDS]
