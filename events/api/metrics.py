"""GET /metrics: Prometheus' text."""

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from rest_framework.request import Request

from events.api import schema
from events.api.doors import GuardedView
from events.scrape import scrape


class MetricsView(GuardedView):
    """Show what Prometheus collects."""

    every_topic = True

    @extend_schema(**schema.METRICS)
    def get(self, request: Request) -> HttpResponse:
        return HttpResponse(scrape(), content_type=CONTENT_TYPE_PLAIN_0_0_4)
