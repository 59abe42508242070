"""The addresses of the API, without trailing slashes."""

from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from events.api.batches import BatchView
from events.api.docs import DocsView, SchemaView
from events.api.events import EventsView, EventView
from events.api.index import IndexView, OverviewView
from events.api.metrics import MetricsView
from events.api.publish import PublishView
from events.api.ready import ReadyView
from events.api.stats import HealthView, StatsView

urlpatterns = [
    path("publish", PublishView.as_view(), name="publish"),
    path("events", EventsView.as_view(), name="events"),
    path("events/<int:number>", EventView.as_view(), name="event"),
    path("stats", StatsView.as_view(), name="stats"),
    path("batches/<int:batch_id>", BatchView.as_view(), name="batch"),
    path("health", HealthView.as_view(), name="health"),
    path("health/ready", ReadyView.as_view(), name="ready"),
    path("metrics", MetricsView.as_view(), name="metrics"),
    path("schema", SchemaView.as_view(), name="schema"),
    path("docs", DocsView.as_view(url_name="schema"), name="docs"),
    path("", IndexView.as_view(), name="index"),
    # Browsers ask for it beside an answer that is no page.
    path("favicon.ico", RedirectView.as_view(url=static("events/favicon.svg"))),
    path("overview", OverviewView.as_view(), name="overview"),
]
