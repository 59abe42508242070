"""Duplicates: what was dropped, when, from whom, for which event, and whether it said something else."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from events.admin.columns import link, moment
from events.admin.filters import DuplicateFilters
from events.admin.listing import ReadOnlyAdmin
from events.admin.payload import compare, pretty, with_beginning
from events.models import Batch, Duplicate, Erasure, Event


@admin.register(Duplicate)
class DuplicateAdmin(ReadOnlyAdmin):
    filters = DuplicateFilters
    detail_template = "admin/events/duplicate.html"
    large_field = "payload"
    large_field_permissions = ("events.view_duplicate",)
    nothing_yet = (
        "No duplicate was dropped in the days that the log goes back (DUPLICATE_LOG_DAYS; 0 turns it off). "
        "Publish an event twice to see one."
    )
    list_display = ("id_", "topic_", "source_", "received", "payload_", "batch_")
    list_display_links = None

    def columns(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.defer("payload")

    @admin.display(description="Event id")
    def id_(self, duplicate: Duplicate) -> SafeString:
        return link("duplicate", duplicate.pk, duplicate.event_id)

    @admin.display(description="Topic")
    def topic_(self, duplicate: Duplicate) -> SafeString:
        return format_html('<span class="key">{}</span>', duplicate.topic)

    @admin.display(description="Sent by")
    def source_(self, duplicate: Duplicate) -> SafeString:
        return format_html('<span class="key">{}</span>', duplicate.source)

    @admin.display(description="Accepted")
    def received(self, duplicate: Duplicate) -> SafeString:
        return moment(duplicate.received_at)

    @admin.display(description="Payload")
    def payload_(self, duplicate: Duplicate) -> SafeString:
        if duplicate.payload_differs:
            return SafeString('<span class="status status-differs">differs</span>')
        return SafeString('<span class="status status-same">same</span>')

    @admin.display(description="Batch")
    def batch_(self, duplicate: Duplicate) -> SafeString:
        return link("batch", duplicate.batch_id, duplicate.batch_id)

    def details(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        may_see_events = request.user.has_perm("events.view_event")
        event: Any = None
        if may_see_events:
            # Of an event that has expired, only the key is left to be shown.
            stored = Event.objects.filter(topic=row.topic, event_id=row.event_id)
            event = with_beginning(stored, "payload").exclude(beginning="").first()
        erasure = Erasure.objects.filter(topic=row.topic, event_id=row.event_id).first()
        kept = row.payload_differs and erasure is None
        return {
            "title": row.event_id,
            "event": event,
            "erasure": erasure,
            "may_see_events": may_see_events,
            "may_see_batches": request.user.has_perm("events.view_batch"),
            "batch": Batch.objects.defer("body").filter(pk=row.batch_id).first(),
            "lines": compare(event.beginning, row.beginning) if event and kept else None,
            "stored": pretty(event.beginning) if event else None,
            "stored_url": reverse("admin:events_event_payload", args=[event.pk]) if event else "",
            "dropped": pretty(row.beginning) if kept else None,
        }
