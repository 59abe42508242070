"""The service's addresses, and the two that it is measured against."""

from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from aggregator_project import urls
from bench.replaced import ReplacedView


class EmptyView(APIView):
    """Does nothing: what Django REST Framework costs under this server and this middleware."""

    def post(self, request: Request) -> Response:
        return Response({"status": "accepted"}, status=202)


# Each ends like the service's own, so that whatever can publish to the service can publish to them.
urlpatterns = [
    path("empty/publish", EmptyView.as_view()),
    path("replaced/publish", ReplacedView.as_view()),
    *urls.urlpatterns,
]

handler404 = urls.handler404
handler500 = urls.handler500
