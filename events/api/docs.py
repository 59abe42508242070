"""GET /docs and /schema: for whoever has a key or is logged in to the admin, where keys are required."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.http import HttpResponseRedirect
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from events.api.doors import ApiKeyAuthentication, GuardedView, HasScopeOrLogin
from events.api.json import JSONRenderer


class PageView(GuardedView):
    """A view for people, who may be logged in instead of having a key."""

    scope = "any"

    def get_authenticators(self) -> list[BaseAuthentication]:
        return [ApiKeyAuthentication(), SessionAuthentication()] if settings.REQUIRE_API_KEY else []

    def get_permissions(self) -> Sequence[BasePermission]:
        return [HasScopeOrLogin()] if settings.REQUIRE_API_KEY else []

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(response, Response) and response.status_code >= 400:
            # These views render HTML and YAML; errors are JSON everywhere.
            request.accepted_renderer, request.accepted_media_type = JSONRenderer(), JSONRenderer.media_type
        return super().finalize_response(request, response, *args, **kwargs)


class SchemaView(PageView, SpectacularAPIView):
    """OpenAPI 3."""


class DocsView(PageView, SpectacularSwaggerSplitView):
    """Swagger UI, with its script apart from the page, so that the page needs no inline script."""

    template_name = "events/docs.html"
    template_name_js = "events/docs.js"

class IndexView(APIView):
    """Lead to the docs."""

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("docs"))
