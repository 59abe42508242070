"""Topics and sources: what was stored and dropped of each since the beginning.

Unlike events they are few: GET /stats reads all topics each time. So these lists may be sorted by any column.
"""

from typing import Any

from django.contrib import admin
from django.db.models import BigIntegerField, ExpressionWrapper, F, FloatField, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from events.admin.columns import moment, number
from events.admin.sparkline import sparkline
from events.dashboard import SPARK_MINUTES, sparks
from events.models import SourceTotal, TopicTotal
from events.templatetags.figures import percent

_received = ExpressionWrapper(F("unique") + F("duplicates"), output_field=BigIntegerField())
_share = ExpressionWrapper(F("duplicates") * 1.0 / (F("unique") + F("duplicates")), output_field=FloatField())


class TotalsAdmin(ModelAdmin):
    """Rows of totals, sortable by each column."""

    #: The field that names what is counted, and the lists of events and duplicates can be filtered by.
    name = ""
    change_list_template = "admin/events/totals.html"
    list_display_links = None
    list_per_page = 50
    show_full_result_count = False
    list_fullwidth = True
    actions = None

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.model._default_manager.annotate(received=_received, share=_share)
        return rows

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return ("-received", self.name)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        # It stands for the total, which would be one more count; without it unfold says "Show all" where all is shown.
        changelist.full_result_count = changelist.result_count
        return changelist

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"title": str(self.opts.verbose_name_plural).capitalize()})

    def link_to(self, page: str, name: str, text: object) -> SafeString:
        address = reverse(f"admin:events_{page}_changelist")
        return format_html('<a class="key" href="{}?{}">{}</a>', address, urlencode({self.name: name}), text)

    @admin.display(description="Received", ordering="received")
    def received_(self, total: Any) -> SafeString:
        return number(total.received)

    @admin.display(description="Unique", ordering="unique")
    def unique_(self, total: Any) -> SafeString:
        return number(total.unique)

    @admin.display(description="Duplicates", ordering="duplicates")
    def duplicates_(self, total: Any) -> SafeString:
        if not total.duplicates:
            return number(0)
        return self.link_to("duplicate", getattr(total, self.name), number(total.duplicates))

    @admin.display(description="Share of duplicates", ordering="share")
    def share_(self, total: Any) -> SafeString:
        return format_html(
            '<span class="share"><span style="width:{}%"></span></span><span class="number">{}</span>',
            f"{(total.share or 0) * 100:.0f}",
            percent(total.share),
        )

    @admin.display(description="Last seen", ordering="last_seen")
    def last(self, total: Any) -> SafeString:
        return moment(total.last_seen)


@admin.register(TopicTotal)
class TopicAdmin(TotalsAdmin):
    name = "topic"
    list_display = ("topic_", "received_", "unique_", "duplicates_", "share_", "first", "last", "hour")
    search_fields = ("topic__startswith",)
    search_help_text = "How a topic begins"

    @admin.display(description="Topic", ordering="topic")
    def topic_(self, total: TopicTotal) -> SafeString:
        return self.link_to("event", total.topic, total.topic)

    @admin.display(description="First seen", ordering="first_seen")
    def first(self, total: TopicTotal) -> SafeString:
        return moment(total.first_seen)

    @admin.display(description=f"Last {SPARK_MINUTES} minutes")
    def hour(self, total: Any) -> SafeString:
        return sparkline(total.spark, f"{sum(total.spark):,} events in the last {SPARK_MINUTES} minutes")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        lines = sparks([row.topic for row in rows], timezone.now())
        for row in rows:
            row.spark = lines[row.topic]
        changelist.result_list = rows
        return changelist


@admin.register(SourceTotal)
class SourceAdmin(TotalsAdmin):
    name = "source"
    list_display = ("source_", "received_", "unique_", "duplicates_", "share_", "differing_", "last")
    search_fields = ("source__startswith",)
    search_help_text = "How a source begins"

    @admin.display(description="Source", ordering="source")
    def source_(self, total: SourceTotal) -> SafeString:
        return self.link_to("event", total.source, total.source)

    @admin.display(description="Ids reused for another payload", ordering="differing")
    def differing_(self, total: SourceTotal) -> SafeString:
        if not total.differing:
            return number(0)
        address = reverse("admin:events_duplicate_changelist")
        query = urlencode({"source": total.source, "payload": "differs"})
        return format_html('<a href="{}?{}">{}</a>', address, query, number(total.differing))
