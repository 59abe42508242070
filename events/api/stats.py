"""GET /stats: the books. GET /health: whether the process answers."""

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from events import stats
from events.api import schema
from events.api.doors import GuardedView, key_of
from events.api.parameters import read_parameters


class StatsView(GuardedView):
    """Show what came in and what became of it."""

    @extend_schema(**schema.STATS)
    def get(self, request: Request) -> Response:
        read_parameters(request.query_params)
        books = stats.books(key_of(request))
        return Response(
            {
                "received": books.received,
                "unique_processed": books.unique,
                "duplicate_dropped": books.duplicates,
                "pending": books.pending,
                "failed": books.failed,
                "discarded": books.discarded,
                "topics": list(books.topics),
                "by_topic": {
                    topic: {"unique_processed": counts.unique, "duplicate_dropped": counts.duplicates}
                    for topic, counts in books.topics.items()
                },
                "uptime": stats.uptime(),
            }
        )


class HealthView(APIView):
    """Say whether the process answers."""

    @extend_schema(**schema.HEALTH)
    def get(self, request: Request) -> Response:
        return Response({"status": "healthy"})
