"""GET /docs and /schema: for whoever has a key or is logged in to the admin, where keys are required."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.urls import reverse
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.renderers import TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response

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
            # These views render HTML and YAML; errors are JSON everywhere, but for people who only have to log in.
            request.accepted_renderer, request.accepted_media_type = JSONRenderer(), JSONRenderer.media_type
            if response.status_code == 401 and "text/html" in request.META.get("HTTP_ACCEPT", ""):
                request.accepted_renderer, request.accepted_media_type = TemplateHTMLRenderer(), "text/html"
                page = sign_in_page(request)
                response.data, response.template_name = page.data, page.template_name
                # DRF renders errors with templates of its own.
                response.exception = False
        return super().finalize_response(request, response, *args, **kwargs)


def staff(request: Request) -> bool:
    """Whether the caller is logged in to the admin."""
    user = request.user
    return bool(user and user.is_active and user.is_staff)


def sign_in_page(request: Request, *, problems: Sequence[Any] = ()) -> Response:
    """What people get who have to log in first: how to, and how to get an API key.

    Args:
        request: what they asked for; logging in leads back to it.
        problems: what is not well (events.api.index.Problem).
    """
    page = {
        "next": request.get_full_path(),
        "staff": staff(request),
        "publish": request.build_absolute_uri(reverse("publish")),
        "problems": problems,
    }
    return Response(page, template_name="events/sign_in.html")


class SchemaView(PageView, SpectacularAPIView):
    """OpenAPI 3."""


class DocsView(PageView, SpectacularSwaggerSplitView):
    """Swagger UI, with its script apart from the page, so that the page needs no inline script."""

    template_name = "events/docs.html"
    template_name_js = "events/docs.js"
