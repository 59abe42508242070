"""OPTIONS is answered at every address, whatever is asked for in return."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

pytestmark = pytest.mark.django_db


def routes(resolver: URLResolver, beginning: str = "/") -> Iterator[str]:
    """An example of every address in the URL conf."""
    for pattern in resolver.url_patterns:
        route = beginning + str(pattern.pattern).removeprefix("^").removesuffix("$")
        if isinstance(pattern, URLResolver):
            yield from routes(pattern, route)
        elif isinstance(pattern, URLPattern):
            example = route
            for converter in pattern.pattern.converters:
                for kind in ("", "int:", "path:", "str:"):
                    example = example.replace(f"<{kind}{converter}>", "1")
            yield example


ADDRESSES = sorted(
    {*routes(get_resolver()), "/static/events/admin.css", "/nothing", "/admin/nothing", "//", "/publish/"}
)


@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json"])
@pytest.mark.parametrize("logged_in", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_options_is_never_a_500(accept: str, logged_in: bool, keys: bool, client: Client, settings: Any) -> None:
    settings.REQUIRE_API_KEY = keys
    client.raise_request_exception = False
    if logged_in:
        from django.contrib.auth import get_user_model

        client.force_login(get_user_model().objects.create_superuser("someone", password="x"))
    assert {"/docs", "/health/ready", "/batches/1", "/admin/"} <= set(ADDRESSES)
    answers = {address: client.options(address, headers={"accept": accept}).status_code for address in ADDRESSES}
    assert {address: status for address, status in answers.items() if status >= 500} == {}
    assert answers["/health"] == 200


@pytest.mark.parametrize("address", ["/publish", "/events", "/docs", "/schema", "/health/ready", "/metrics"])
@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_it_says_which_methods_there_are(address: str, accept: str, client: Client) -> None:
    answer = client.options(address, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert "OPTIONS" in answer.headers["Allow"]
