"""Scripts of web pages may call the API from the origins that CORS_ALLOWED_ORIGINS names, and from no others."""

from collections.abc import Iterator

import httpx
import pytest
from django.test import Client

from tests.server import Server, serving

# They share a service.
pytestmark = pytest.mark.xdist_group("cors")

OURS = "https://app.example.com"
PREFLIGHT = {
    "Origin": OURS,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,prefer,x-api-key,x-request-id",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), CORS_ALLOWED_ORIGINS=OURS, REQUIRE_API_KEY="true") as server:
        yield server


def words(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


def test_a_preflight_needs_no_key_and_allows_what_a_publish_sends(server: Server) -> None:
    answer = httpx.options(f"{server.url}/publish", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert words(PREFLIGHT["Access-Control-Request-Headers"]) <= words(answer.headers["Access-Control-Allow-Headers"])
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(("path", "status"), [("/publish", 401), ("/nothing", 404), ("/health", 200)])
def test_a_script_may_read_the_answer_and_also_why_it_was_refused(server: Server, path: str, status: int) -> None:
    answer = httpx.request("GET" if status == 200 else "POST", server.url + path, headers={"Origin": OURS})
    assert answer.status_code == status
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert words("Location, Retry-After, X-Request-ID") <= words(answer.headers["Access-Control-Expose-Headers"])
    assert "origin" in words(answer.headers["Vary"])
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example.com", "null", "https://app.example.com.x"]
)
def test_no_other_origin_may(server: Server, origin: str) -> None:
    for method in ("OPTIONS", "POST"):
        answer = httpx.request(method, f"{server.url}/publish", headers=PREFLIGHT | {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_admin_is_not_for_scripts_of_others(server: Server) -> None:
    answer = httpx.get(f"{server.url}/admin/login/", headers={"Origin": OURS})
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.django_db
def test_it_is_off_unless_it_is_set(client: Client) -> None:
    assert "Access-Control-Allow-Origin" not in client.get("/health", headers={"Origin": OURS})
