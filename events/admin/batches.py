"""Batches: what became of each publish; dead letters can be read, replayed and discarded."""

from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from events import dead_letters
from events.admin.columns import link, moment, number
from events.admin.filters import BatchFilters, status_word
from events.admin.listing import ReadOnlyAdmin
from events.admin.payload import pretty
from events.models import Batch, Duplicate, Event, Pruned
from events.templatetags.figures import duration

#: Events of a batch that its page lists.
EVENTS_SHOWN = 20


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    filters = BatchFilters
    detail_template = "admin/events/batch.html"
    # Which holds the events, keys and all.
    large_field = "body"
    large_field_permissions = ("events.view_batch", "events.view_event")
    nothing_yet = "Nothing has been accepted yet. Every publish that is answered 202 becomes a batch here."
    list_display = ("number_", "status_", "accepted", "received_", "unique_", "duplicates_", "waited_", "trouble")
    list_display_links = None
    actions = ("replay", "discard")

    def columns(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.defer("body")

    @admin.display(description="Batch")
    def number_(self, batch: Batch) -> SafeString:
        return link("batch", batch.pk, batch.pk)

    @admin.display(description="Status")
    def status_(self, batch: Batch) -> SafeString:
        return status(batch)

    @admin.display(description="Accepted")
    def accepted(self, batch: Batch) -> SafeString:
        return moment(batch.accepted_at)

    @admin.display(description="Events")
    def received_(self, batch: Batch) -> SafeString:
        return number(batch.received)

    @admin.display(description="Unique")
    def unique_(self, batch: Batch) -> SafeString | str:
        return number(batch.unique) if batch.processed_at else "–"

    @admin.display(description="Duplicates")
    def duplicates_(self, batch: Batch) -> SafeString | str:
        return number(batch.duplicates) if batch.processed_at else "–"

    @admin.display(description="Stored after")
    def waited_(self, batch: Batch) -> SafeString:
        return format_html('<span class="number">{}</span>', waited(batch, timezone.now()))

    @admin.display(description="Error")
    def trouble(self, batch: Batch) -> SafeString:
        return format_html('<span class="trouble">{}</span>', batch.error[:100])

    @admin.action(description="Replay", permissions=["settle"])
    def replay(self, request: HttpRequest, batches: QuerySet[Batch]) -> None:
        self._replay(request, [batch.pk for batch in batches])

    @admin.action(description="Discard", permissions=["settle"])
    def discard(self, request: HttpRequest, batches: QuerySet[Batch]) -> None:
        self._discard(request, [batch.pk for batch in batches])

    def has_settle_permission(self, request: HttpRequest) -> bool:
        """Whether this user may decide what becomes of dead letters."""
        return request.user.has_perm("events.change_batch")

    def _replay(self, request: HttpRequest, numbers: list[int]) -> None:
        self._report(request, numbers, dead_letters.replay(numbers), "Replayed", "pending again")

    def _discard(self, request: HttpRequest, numbers: list[int]) -> None:
        self._report(request, numbers, dead_letters.discard(numbers), "Discarded", "discarded; replay brings it back")

    def _report(self, request: HttpRequest, asked: list[int], done: list[int], word: str, state: str) -> None:
        if done:
            settled = Batch.objects.filter(pk__in=done).defer("body")
            LogEntry.objects.log_actions(int(request.user.pk or 0), settled, CHANGE, change_message=f"{word}.")
            names = f"Batch {done[0]} is" if len(done) == 1 else f"{len(done)} batches are"
            messages.success(request, f"{names} {state}.")
        if left := len(asked) - len(done):
            messages.warning(request, f"{left} of {len(asked)} left as they are: only dead letters can be settled.")

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("<int:number>/replay", wrap(require_POST(self.replay_one)), name="events_batch_replay"),
            path("<int:number>/discard", wrap(require_POST(self.discard_one)), name="events_batch_discard"),
            *super().get_urls(),
        ]

    def replay_one(self, request: HttpRequest, number: int) -> HttpResponse:
        """The button of a batch's page."""
        return self._settle_one(request, number, self._replay)

    def discard_one(self, request: HttpRequest, number: int) -> HttpResponse:
        """The button of a batch's page."""
        return self._settle_one(request, number, self._discard)

    def _settle_one(self, request: HttpRequest, number: int, settle: Any) -> HttpResponse:
        if not self.has_settle_permission(request):
            raise PermissionDenied
        settle(request, [number])
        return HttpResponseRedirect(reverse("admin:events_batch_change", args=[number]))

    def details(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        may_see_events = request.user.has_perm("events.view_event")
        may_see_duplicates = request.user.has_perm("events.view_duplicate")
        listed = Event.objects.filter(batch=row.pk, pk__gt=Pruned.objects.listed_after())
        events = listed.order_by("id").defer("payload")
        duplicates = Duplicate.objects.filter(batch=row.pk).order_by("id").defer("payload")
        return {
            "title": f"Batch {row.pk}",
            "status": status(row),
            "waited": waited(row, timezone.now()),
            # It is cut between two bytes, which may be in the middle of a character.
            "body": pretty(bytes(row.beginning).decode(errors="replace")) if row.beginning and may_see_events else None,
            "has_body": bool(row.beginning),
            "may_see_events": may_see_events,
            "may_see_duplicates": may_see_duplicates,
            "events": list(events[:EVENTS_SHOWN]) if row.unique and may_see_events else [],
            "dropped": list(duplicates[:EVENTS_SHOWN]) if row.duplicates and may_see_duplicates else [],
            "may_settle": self.has_settle_permission(request),
        }


def status(batch: Batch) -> SafeString:
    """The status as a coloured word."""
    return format_html('<span class="status status-{}">{}</span>', batch.status, status_word(batch.status))


def waited(batch: Batch, now: datetime) -> str:
    """How long it was from accepted to stored, or is by now."""
    if batch.processed_at:
        return duration((batch.processed_at - batch.accepted_at).total_seconds())
    if batch.status == Batch.Status.PENDING:
        return f"{duration(max(0, (now - batch.accepted_at).total_seconds()))} so far"
    return "–"
