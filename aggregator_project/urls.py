"""Every address of the service."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("events.api.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "events.api.errors.bad_request"
handler403 = "events.api.errors.permission_denied"
handler404 = "events.api.errors.not_found"
handler500 = "events.api.errors.server_error"
