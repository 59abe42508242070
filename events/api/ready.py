"""GET /health/ready: whether the service can do its work, for load balancers and for people."""

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from events import health
from events.api import schema
from events.api.json import JSONRenderer


class ReadyView(APIView):
    """Say whether the service can do its work."""

    renderer_classes = [JSONRenderer, TemplateHTMLRenderer]

    @extend_schema(**schema.READY)
    def get(self, request: Request) -> Response:
        report = health.report()
        # It is open to strangers even where keys are required; then it names parts and tells nothing of them.
        details = not settings.REQUIRE_API_KEY
        parts = {
            part.name: {"state": part.word} | ({"detail": part.detail, "ms": part.milliseconds} if details else {})
            for part in report.parts
        }
        answer = {"status": "ready" if report.ready else "unavailable", "down": report.down, "parts": parts}
        response = Response(answer, status=200 if report.ready else 503, template_name="events/ready.html")
        response["Cache-Control"] = "no-store"
        return response
