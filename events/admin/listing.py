"""Lists of rows that may be millions: newest first, filtered through indexes, paged without counting."""

from collections.abc import Callable, Iterator
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

from events.admin.filters import Filters
from events.admin.newer import ASK_MILLISECONDS, NEWER_THAN, count_newer, newest
from events.admin.payload import with_beginning
from events.api.events import SEARCH_SLICE, TooManyStreams, stream
from events.memory import LARGE_BYTES, one_large_at_a_time
from events.payload_search import Key, Looked, hint, search

#: Rows on a page.
PAGE = 50
#: The parameter that says where a page begins: older-17 has the rows before number 17, newer-17 those after it.
PLACE = "p"


class Listing(ChangeList):
    """A page of rows, newest first, with links to the newer and the older ones instead of numbered pages.

    A numbered page needs COUNT(*) to know how many there are, and OFFSET to get there: both read all rows before it.
    """

    filters: Filters
    newer: str | None = None
    older: str | None = None
    #: The id above which rows are new to who reads this page; None where they would not be on top of it.
    newest: int | None = None
    ask_milliseconds = ASK_MILLISECONDS
    #: What a search by payload came to that no index serves; None where there was none.
    looked: Looked | None = None

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        # Ours are no lookups of Django's; others than ours and its own are refused as it refuses them.
        names = self.model_admin.filters.base_fields
        return {name: value for name, value in super().get_filters_params(params).items() if name not in names}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        if self.get_filters_params():
            raise IncorrectLookupParameters
        self.filters = self.model_admin.filters(request.GET)
        # Django's template asks for these.
        self.filter_specs: list[Any] = []
        self.has_filters = self.has_active_filters = False
        if not self.filters.is_valid():
            return self.root_queryset.none()
        return self.model_admin.columns(self.filters.narrow(self.root_queryset))

    def get_results(self, request: HttpRequest) -> None:
        order = self.filters.order
        direction, number = _place(request.GET.get(PLACE, ""))
        newer = direction == "newer"
        if not direction and self.filters.grows:
            # Before the rows: what comes in meanwhile is offered twice rather than never.
            self.newest = newest(self.model)
        rows = self.queryset
        if direction:
            rows = rows.filter(pk__in=[]) if number is None else self._beyond(rows, order, number, newer=newer)
        rows = rows.order_by(*(order if newer else [f"-{name}" for name in order]))
        if self.filters.scanned:
            found, ends, more = self._searched(rows, order, newer=newer)
        else:
            found = list(rows[: self.list_per_page + 1])
            more = len(found) > self.list_per_page
            found = found[: self.list_per_page]
            ends = [found[0].pk, found[-1].pk] if found else []
        if newer:
            found.reverse()
            ends.reverse()
        if ends and (more or newer):
            self.older = self.get_query_string({PLACE: f"older-{ends[-1]}"})
        if ends and (more if newer else direction):
            self.newer = self.get_query_string({PLACE: f"newer-{ends[0]}"})
        self.result_list = found
        self.result_count = self.full_result_count = len(found)
        self.show_full_result_count = False
        self.can_show_all = self.multi_page = False
        self.paginator = Paginator(found, self.list_per_page)
        self.show_admin_actions = bool(found)

    def _searched(self, rows: QuerySet[Any], order: list[str], *, newer: bool) -> tuple[list[Any], list[int], bool]:
        """What of a page matches a search without an index; both ends of what was looked at; whether there is more."""
        self.looked = looked = search(
            self._places(rows, order, newer=newer), self.filters.scanned, enough=self.list_per_page
        )
        matching = {row.pk: row for row in self.queryset.filter(pk__in=looked.found)}
        found = [matching[pk] for pk in looked.found if pk in matching]
        ends = [looked.first[0], looked.last[0]] if looked.first and looked.last else []
        return found, ends, looked.more

    def _places(self, rows: QuerySet[Any], order: list[str], *, newer: bool) -> Iterator[Key]:
        while keys := list(rows.values_list("id", "received_at")[:SEARCH_SLICE]):
            yield from keys
            ahead = self._beyond(self.queryset, order, keys[-1][0], newer=newer)
            rows = ahead.order_by(*rows.query.order_by)

    @property
    def hint(self) -> str:
        """What would make the search by payload fast."""
        return hint(self.filters.scanned)

    def _beyond(self, rows: QuerySet[Any], order: list[str], number: int, *, newer: bool) -> QuerySet[Any]:
        lookup = "gt" if newer else "lt"
        if order == ["id"]:
            return rows.filter(**{f"id__{lookup}": number})
        moment = self.root_queryset.order_by().filter(pk=number).values_list(order[0], flat=True).first()
        if moment is None:
            # Retention has removed it meanwhile.
            return rows
        same_moment = {order[0]: moment, f"id__{'lte' if newer else 'gte'}": number}
        return rows.filter(**{f"{order[0]}__{lookup}e": moment}).exclude(**same_moment)


def _place(text: str) -> tuple[str, int | None]:
    direction, _, number = text.partition("-")
    if direction not in ("older", "newer"):
        return "", None
    return direction, int(number) if number.isascii() and number.isdigit() and len(number) < 19 else None


class ReadOnlyAdmin(ModelAdmin):
    """Rows that the service writes and people read."""

    filters: type[Filters] = Filters
    change_list_template = "admin/events/list.html"
    #: The page of one row.
    detail_template = ""
    #: The field that may have megabytes: a page reads its beginning, a download all of it.
    large_field = ""
    #: What a user must be allowed to read that field.
    large_field_permissions: tuple[str, ...] = ()
    #: What an empty list says where no filter is set.
    nothing_yet = ""
    list_per_page = PAGE
    show_full_result_count = False
    sortable_by = ()
    list_fullwidth = True
    actions: Any = None

    def columns(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """The rows with what a list shows of them, and without what it does not."""
        return rows

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Listing]:
        return Listing

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if NEWER_THAN in request.GET:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return JsonResponse(count_newer(self.model, self.filters(request.GET), request.GET))
        title = str(self.opts.verbose_name_plural).capitalize()
        return super().changelist_view(
            request, {"title": title, "nothing_yet": self.nothing_yet, **(extra_context or {})}
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = self.row(request, object_id)
        return TemplateResponse(
            request,
            self.detail_template,
            {
                **self.admin_site.each_context(request),
                "title": str(row),
                "opts": self.opts,
                "row": row,
                "list_url": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
                "download_url": self._download_url(row),
                **self.details(request, row),
                **(extra_context or {}),
            },
        )

    def row(self, request: HttpRequest, object_id: str) -> Model:
        """The row with this number.

        Raises:
            PermissionDenied, Http404: this user may not see it; there is none.
        """
        number = int(object_id) if object_id.isascii() and object_id.isdigit() and len(object_id) < 19 else None
        rows = self.get_queryset(request)
        if self.large_field:
            rows = with_beginning(rows, self.large_field)
        row: Model | None = rows.filter(pk=number).first() if number else None
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404(f"There is no {self.opts.verbose_name} {object_id}, or retention has removed it.")
        return row

    def details(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page of one row shows beside the row."""
        return {}

    def get_urls(self) -> list[URLPattern]:
        urls: list[URLPattern] = super().get_urls()
        if not self.large_field:
            return urls
        view = self.admin_site.admin_view(self.download)
        name = f"{self.opts.app_label}_{self.opts.model_name}_{self.large_field}"
        return [path(f"<int:number>/{self.large_field}", view, name=name), *urls]

    def _download_url(self, row: Model) -> str:
        if not self.large_field:
            return ""
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_{self.large_field}", args=[row.pk])

    def download(self, request: HttpRequest, number: int) -> HttpResponseBase:
        """All of the field of which the page shows the beginning."""
        if not request.user.has_perms(self.large_field_permissions):
            raise PermissionDenied
        with one_large_at_a_time(LARGE_BYTES):
            rows = (
                self.get_queryset(request).filter(pk=number) if number < 2**63 else self.model._default_manager.none()
            )
            value = rows.values_list(self.large_field, flat=True).first()
            if not value:
                raise Http404(f"There is no {self.large_field} of {self.opts.verbose_name} {number}.")
            data = value.encode() if isinstance(value, str) else bytes(value)
            del value
        return streamed(
            lambda: stream(
                iter(() if request.method == "HEAD" else (data,)),
                "application/json",
                f'attachment; filename="{self.opts.model_name}-{number}.json"',
                may_go_on(request, *self.large_field_permissions),
            )
        )


def may_go_on(request: HttpRequest, *permissions: str) -> Callable[[], bool]:
    """Whether the user of a request may still read what is being streamed: nobody closed or narrowed the account."""

    def ask() -> bool:
        user = get_user_model().objects.filter(pk=request.user.pk or 0, is_active=True, is_staff=True).first()
        return user is not None and user.has_perms(permissions)

    return ask


def streamed(begin: Callable[[], HttpResponseBase]) -> HttpResponseBase:
    """A stream, or word that there is no place for another one."""
    try:
        return begin()
    except TooManyStreams:
        return HttpResponse(
            "Too many streams are open. Try again later.",
            status=503,
            content_type="text/plain; charset=utf-8",
            headers={"Retry-After": "2"},
        )
