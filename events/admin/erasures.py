"""Erasures: whose payload was erased, by whom and when. Nothing here can be changed."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from events.admin.columns import moment
from events.admin.filters import ErasureFilters
from events.admin.listing import ReadOnlyAdmin
from events.models import Erasure


@admin.register(Erasure)
class ErasureAdmin(ReadOnlyAdmin):
    filters = ErasureFilters
    nothing_yet = (
        "No payload was erased yet. The page of an event has a button for it, and so have manage.py erase and "
        "DELETE /events/{id}."
    )
    list_display = ("id_", "topic_", "erased", "by", "request_id_")
    list_display_links = None

    @admin.display(description="Event id")
    def id_(self, erasure: Erasure) -> SafeString:
        query = urlencode({"event_id": erasure.event_id, "topic": erasure.topic})
        address = f"{reverse('admin:events_event_changelist')}?{query}"
        return format_html('<a class="key" href="{}">{}</a>', address, erasure.event_id)

    @admin.display(description="Topic")
    def topic_(self, erasure: Erasure) -> SafeString:
        return format_html('<span class="key">{}</span>', erasure.topic)

    @admin.display(description="Erased")
    def erased(self, erasure: Erasure) -> SafeString:
        return moment(erasure.erased_at)

    @admin.display(description="By")
    def by(self, erasure: Erasure) -> SafeString:
        return format_html('<span class="key">{}</span>', erasure.erased_by)

    @admin.display(description="Request id")
    def request_id_(self, erasure: Erasure) -> SafeString:
        return format_html('<span class="key">{}</span>', erasure.request_id or "–")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The list says all there is."""
        row: Any = self.row(request, object_id)
        query = urlencode({"event_id": row.event_id, "topic": row.topic})
        return HttpResponseRedirect(f"{reverse('admin:events_erasure_changelist')}?{query}")
