"""Events: find one, read it, see the batch it came in and what was dropped for it, and erase what it says."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import F, QuerySet, Sum
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from events.admin.columns import link, moment
from events.admin.filters import EventFilters
from events.admin.listing import Listing, ReadOnlyAdmin, may_go_on, streamed
from events.admin.payload import pretty, with_beginning
from events.api.events import EXPORTS, export
from events.erasure import erase
from events.models import Batch, Duplicate, Erasure, Event, Pruned, TopicTotal

#: Characters of a payload that the list shows.
PREVIEW = 90
#: Dropped duplicates that the page of an event lists.
DUPLICATES_SHOWN = 20


class EventListing(Listing):
    def known_count(self) -> int | None:
        """How many events the filters match, where the books know it."""
        if not self.filters.is_valid():
            return None
        wanted = self.filters.wanted(*self.filters.fields)
        if wanted.keys() > {"topic"} or wanted.keys() - {"topic"}:
            return None
        return TopicTotal.objects.filter(**wanted).aggregate(total=Sum(F("unique") - F("expired")))["total"] or 0


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    filters = EventFilters
    change_list_template = "admin/events/event_list.html"
    detail_template = "admin/events/event.html"
    large_field = "payload"
    large_field_permissions = ("events.view_event",)
    nothing_yet = "No event is stored yet. This page says when one comes in; manage.py publish sends thousands."
    list_display = ("id_", "topic_", "source_", "accepted", "preview")
    list_display_links = None

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Listing]:
        return EventListing

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).filter(pk__gt=Pruned.objects.listed_after())

    def columns(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        # A payload may have megabytes, and a page has fifty.
        return with_beginning(rows, "payload", PREVIEW)

    @admin.display(description="Event id")
    def id_(self, event: Event) -> SafeString:
        return link("event", event.pk, event.event_id)

    @admin.display(description="Topic")
    def topic_(self, event: Event) -> SafeString:
        return format_html('<span class="key">{}</span>', event.topic)

    @admin.display(description="Source")
    def source_(self, event: Event) -> SafeString:
        return format_html('<span class="key">{}</span>', event.source)

    @admin.display(description="Accepted")
    def accepted(self, event: Event) -> SafeString:
        return moment(event.received_at)

    @admin.display(description="Payload")
    def preview(self, event: Any) -> SafeString:
        text = event.beginning
        return format_html('<code class="preview">{}{}</code>', text[:PREVIEW], "…" if len(text) > PREVIEW else "")

    def details(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        dropped = Duplicate.objects.filter(topic=row.topic, event_id=row.event_id).order_by("-id").defer("payload")
        may_see_duplicates = request.user.has_perm("events.view_duplicate")
        found = list(dropped[: DUPLICATES_SHOWN + 1]) if may_see_duplicates else []
        return {
            "payload": pretty(row.beginning),
            "erasure": Erasure.objects.filter(topic=row.topic, event_id=row.event_id).first(),
            "may_erase": request.user.has_perm("events.erase_event"),
            "batch": Batch.objects.defer("body").filter(pk=row.batch_id).first(),
            "may_see_batches": request.user.has_perm("events.view_batch"),
            "duplicates": found[:DUPLICATES_SHOWN],
            "more_duplicates": len(found) > DUPLICATES_SHOWN,
            "may_see_duplicates": may_see_duplicates,
        }

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("export.<str:form>", wrap(self.export), name="events_event_export"),
            path("<int:number>/erase", wrap(self.erase), name="events_event_erase"),
            *super().get_urls(),
        ]

    def erase(self, request: HttpRequest, number: int) -> HttpResponse:
        """Asks whether to erase the payload of an event, and does it when the question is sent back."""
        row: Any = self.row(request, str(number))
        if not request.user.has_perm("events.erase_event"):
            raise PermissionDenied
        if request.method != "POST":
            context = {**self.admin_site.each_context(request), "title": "Erase payload", "opts": self.opts, "row": row}
            return TemplateResponse(request, "admin/events/erase.html", context)
        done = erase(row.topic, row.event_id, by=f"{request.user.get_username()} (admin)")
        if done.unreadable:
            numbers = ", ".join(map(str, done.unreadable))
            messages.warning(
                request, f"These batches cannot be read and may hold the event; all else is erased: {numbers}."
            )
        else:
            messages.success(request, "The payload is erased. Backups that were made before are yours to erase.")
        return HttpResponseRedirect(reverse("admin:events_event_change", args=[row.pk]))

    def export(self, request: HttpRequest, form: str) -> HttpResponseBase:
        """Every event that the filters match, oldest first, as a file that is written while it is read."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if form not in EXPORTS:
            raise Http404("Events can be exported as csv or ndjson.")
        filters = EventFilters(request.GET)
        if not filters.is_valid():
            return HttpResponseBadRequest("A filter is not valid: go back to the list, which says which one.")
        return streamed(
            lambda: export(
                filters.query(),
                form,
                head=request.method == "HEAD",
                may_go_on=may_go_on(request, "events.view_event"),
                disposition="attachment",
            )
        )
