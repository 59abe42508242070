"""The admin's first page, and where its menu leads."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache

from aggregator_project.doors import open_doors
from events.admin.sparkline import sparkline
from events.api.index import flower_url
from events.dashboard import SPARK_MINUTES, WINDOWS, snapshot

#: Milliseconds between two looks of an open dashboard.
REFRESH_MILLISECONDS = 2000


def dashboard(request: HttpRequest) -> dict[str, Any]:
    """What the templates of the dashboard show."""
    window = WINDOWS.get(request.GET.get("window", ""), WINDOWS["hour"])
    now = snapshot(window)
    series = now.series
    return {
        "now": now,
        "doors": open_doors(),
        "windows": WINDOWS.values(),
        "refresh": REFRESH_MILLISECONDS,
        # They are of one hour; under "Last day" they would be read as the day's.
        "shows_sparks": window.minutes == SPARK_MINUTES,
        "topics": [
            (total, sparkline(total.spark, f"{sum(total.spark):,} events in the last {SPARK_MINUTES} minutes"))
            for total in now.topics
        ],
        "charts": {
            "window": window.name,
            "received": now.books.received,
            "at": now.at.timestamp(),
            "step": window.step,
            "times": [at.strftime("%H:%M") for at in series.times],
            "unique": series.unique,
            "duplicates": series.duplicates,
            "share": series.share,
            "p50": series.p50,
            "p99": series.p99,
        },
    }


def index(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Adds the dashboard to the admin's first page; unfold's DASHBOARD_CALLBACK."""
    if may_see(request):
        context.update(dashboard(request), title="Dashboard")
    return context


def may_see(request: HttpRequest) -> bool:
    """Whether this user may see the dashboard: whoever may see events."""
    return request.user.has_perm("events.view_event")


@never_cache
def live(request: HttpRequest) -> HttpResponse:
    """The parts of the dashboard that change, for the page to put in place."""
    if not may_see(request):
        raise PermissionDenied
    return render(request, "admin/events/dashboard_live.html", dashboard(request))


def extra_urls() -> list[URLPattern]:
    return [path("live", admin.site.admin_view(live), name="live")]


# unfold's way to add pages that belong to no model.
admin.site.extra_urls = extra_urls  # type: ignore[attr-defined]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The menu: what this user may see."""

    def page(title: str, icon: str, model: str, app: str = "events") -> list[dict[str, Any]]:
        if not request.user.has_perm(f"{app}.view_{model}"):
            return []
        return [{"title": title, "icon": icon, "link": reverse(f"admin:{app}_{model}_changelist")}]

    service = [
        {"title": "Dashboard", "icon": "monitoring", "link": reverse("admin:index")},
        *page("Events", "event_note", "event"),
        *page("Duplicates", "content_copy", "duplicate"),
        *page("Batches", "inbox", "batch"),
        *page("Topics", "topic", "topictotal"),
        *page("Sources", "sensors", "sourcetotal"),
        *page("Erasures", "ink_eraser", "erasure"),
    ]
    # Never the current page: unfold would mark "/" on every page, because every path begins with it.
    elsewhere = [{"title": "Start page", "icon": "home", "link": reverse("index"), "active": False}]
    elsewhere += [{"title": "API", "icon": "api", "link": reverse("docs"), "active": False}]
    if flower := flower_url(request):
        elsewhere.append({"title": "Flower: tasks", "icon": "local_florist", "link": flower, "active": False})
    people = [
        *page("API keys", "key", "apikey"),
        *page("Users", "person", "user", "auth"),
        *page("Groups", "group", "group", "auth"),
    ]
    groups = [("", service), ("Elsewhere", elsewhere), ("Access", people)]
    return [{"title": title, "separator": bool(title), "items": items} for title, items in groups if items]
