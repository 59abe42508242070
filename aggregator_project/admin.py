"""The site of the admin: unfold's, with a log-in page and a search of our own."""

from typing import Any

from django.contrib.admin import apps
from django.http import HttpRequest, HttpResponseBase
from unfold.sites import UnfoldAdminSite


class AdminSite(UnfoldAdminSite):
    """unfold's site. Its pages come from events/admin, which is imported once the models are there."""

    index_template = "admin/events/dashboard.html"
    login_template = "admin/events/login.html"

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseBase:
        """Answers Ctrl-K.

        Not as unfold does, which keeps what it found for five minutes under the words in small letters: here capital
        and small letters differ, and who has lost a permission must lose the hits at once.
        """
        from events.admin import search

        return search.answer(request)


class AdminConfig(apps.AdminConfig):
    """Django's app of the admin, with this site."""

    default_site = "aggregator_project.admin.AdminSite"
