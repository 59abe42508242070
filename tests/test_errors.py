"""Errors that no view of the API made are JSON too, and the commonest mistakes get the answer that mends them."""

import io
import logging
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import HttpRequest
from django.test import Client, RequestFactory
from pytest_django import Settings

from aggregator_project.logs import STRANGERS_PAUSE_SECONDS, OnceInAWhile, logging_config
from events import keys
from events.api import errors
from events.api.curl import curl_line
from tests.server import Server, serving

pytestmark = pytest.mark.django_db


def detail(answer: Any) -> str:
    assert answer["Content-Type"] == "application/json"
    [(name, text)] = answer.json().items()
    assert name == "detail"
    return str(text)


# --- Outside the views ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nothing", 404, "nothing at /nothing"),
        ("POST", "/nothing", 404, "nothing at /nothing"),
        ("GET", "/%ff%fe", 404, "nothing at"),
        ("GET", "/%00", 404, "nothing at"),
        ("GET", "/static/nothing.css", 404, "nothing at"),
        ("POST", "/", 405, "/publish"),
        ("PUT", "/publish", 405, "/publish"),
        ("POST", "/stats", 405, "/publish"),
        ("DELETE", "/health", 405, "/health"),
        ("DELETE", "/health", 405, "DELETE does nothing here, GET and HEAD do. "),
        ("GET", "/publish", 405, "GET does nothing here, POST does. "),
        ("GET", "/events?" + "&".join(f"a{n}" for n in range(1001)), 400, "more than 1,000 parameters"),
    ],
)
def test_every_error_is_json(client: Client, method: str, path: str, status: int, says: str) -> None:
    answer = client.generic(method, path)
    assert answer.status_code == status
    assert says in detail(answer)


def test_a_host_that_is_not_ours_is_a_400_in_json(client: Client) -> None:
    answer = client.get("/stats", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert "ALLOWED_HOSTS" in detail(answer)
    assert answer["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["10.1.2.3:8080", "evil.example", "no host at all", "[::", ""])
@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_load_balancers_ask_by_whatever_name_they_have(client: Client, path: str, host: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code in (200, 503)
    assert "status" in answer.json()
    assert int(answer["Content-Length"]) == len(answer.content)


def test_a_mistake_of_theirs_is_told_by_whatever_name_too(client: Client) -> None:
    answer = client.post("/health", headers={"Host": "10.1.2.3:8080"})
    assert answer.status_code == 405
    assert "This works: curl http://127.0.0.1:" in detail(answer)


def test_prometheus_asks_by_whatever_name_it_has_found_with_a_key(client: Client, settings: Settings) -> None:
    settings.REQUIRE_API_KEY = True
    _, key = keys.create("prometheus", may_publish=False, may_read=True)
    by_address = {"Host": "10.1.2.3:8080"}
    assert client.get("/metrics", headers=by_address | {"X-API-Key": key}).status_code == 200
    refused = client.get("/metrics", headers=by_address)
    assert refused.status_code == 401
    assert "An API key is needed" in detail(refused)


def test_where_no_key_is_needed_metrics_are_for_the_right_name_only(client: Client) -> None:
    assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("view", "error", "status"),
    [
        (errors.bad_request, RequestDataTooBig(), 413),
        (errors.bad_request, SuspiciousOperation(), 400),
        (errors.permission_denied, PermissionDenied(), 403),
    ],
)
def test_what_middleware_raises_is_json_and_in_the_admin_a_page(view: Any, error: Exception, status: int) -> None:
    answer = view(RequestFactory().get("/stats"), error)
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/json")
    assert view(RequestFactory().get("/admin/"), error)["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("view", [errors.server_error, errors.csrf_failure])
def test_a_mistake_of_ours_and_a_missing_token_are_too(view: Any) -> None:
    assert view(RequestFactory().get("/stats"))["Content-Type"] == "application/json"
    assert view(RequestFactory().get("/admin/"))["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/admin/nothing/", "/admin/events/nothing/"])
def test_the_admin_answers_with_pages(admin_client: Client, path: str) -> None:
    answer = admin_client.get(path)
    assert answer.status_code == 404
    assert answer["Content-Type"].startswith("text/html")


# --- What is said of it -----------------------------------------------------------------------------------------------


def test_strangers_cause_one_line_a_minute_without_a_traceback() -> None:
    now = 100.0
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(OnceInAWhile(clock=lambda: now))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.Logger("django.security.DisallowedHost")
    logger.addHandler(handler)
    for seconds in (0.0, 1.0, STRANGERS_PAUSE_SECONDS):
        now = 100.0 + seconds
        logger.error("no %s", "x" * 9000, exc_info=ValueError("a"), extra={"request": HttpRequest()})
    lines = stream.getvalue().splitlines()
    assert [line[:12] for line in lines] == ["WARNING no xx"[:12]] * 2
    assert max(map(len, lines)) < 300


def test_they_are_written_that_way() -> None:
    config = logging_config(form="json", level="INFO", part="web")
    assert config["loggers"]["django.security"] == {"handlers": ["strangers"], "propagate": False, "level": "INFO"}
    assert config["handlers"]["strangers"]["filters"] == ["once_in_a_while"]


# --- The commonest mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/publish/", "/publish"),
        ("/events/", "/events"),
        ("/stats//", "/stats"),
        ("/batches/1/", "/batches/1"),
        ("//health/ready/", "/health/ready"),
    ],
)
def test_a_slash_too_many_is_told_the_right_address(client: Client, path: str, meant: str) -> None:
    answer = client.generic("POST", "/", PATH_INFO=path)
    assert answer.status_code == 404
    assert f"it is {meant}." in detail(answer)


@pytest.mark.parametrize("path", ["/nothing/", "/admin2/", "/stats/1/"])
def test_a_slash_at_the_end_of_nothing_is_told_nothing(client: Client, path: str) -> None:
    assert "This works" not in detail(client.get(path))


def test_a_browser_on_publish_is_told_how_to_publish(client: Client) -> None:
    answer = client.get("/publish", headers={"Host": "localhost:8099"})
    assert answer.status_code == 405
    assert answer["Allow"] == "POST, OPTIONS"
    assert "curl http://localhost:8099/publish -H 'Content-Type: application/json' -d '{" in detail(answer)


@pytest.mark.parametrize("header", ["Basic YTpi", "Token abc", "aaaaaaaa.secretsecret"])
def test_a_wrong_scheme_is_told_the_right_one_and_not_repeated(client: Client, settings: Settings, header: str) -> None:
    settings.REQUIRE_API_KEY = True
    answer = client.get("/stats", headers={"Authorization": header})
    assert answer.status_code == 401
    assert "neither Api-Key nor Bearer" in detail(answer)
    assert "curl http://testserver/stats -H 'Authorization: Api-Key <key>'" in detail(answer)
    assert header not in detail(answer)


def test_a_line_for_a_shell_holds_nothing_that_a_shell_obeys() -> None:
    line = curl_line(RequestFactory().get("/"), "/x'; $(reboot) `y`", method="DELETE")
    program, address, *rest = shlex.split(line)
    assert (program, rest) == ("curl", ["-X", "DELETE"])
    assert address.startswith("http://testserver/x")
    assert "`" not in line.replace(shlex.quote(address), "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("path", ["/publish", "/publish/", "/"])
def test_the_line_works_as_it_stands(server: Server, path: str, tmp_path: Path) -> None:
    method = "PUT" if path == "/publish" else "POST"
    refused = Client().generic(method, path, headers={"Host": f"localhost:{server.port}"})
    program, *arguments = shlex.split(detail(refused).split("This works: ")[1])
    assert program == "curl"
    assert '"status":"accepted"' in curl(*arguments)


def test_a_strangers_host_leaves_one_line_in_the_log(server: Server) -> None:
    for _ in range(20):
        assert "ALLOWED_HOSTS" in curl(f"{server.url}/stats", "-H", "Host: evil.example")
    lines = [line for line in server.log.splitlines() if "evil.example" in line]
    # One a process.
    assert 1 <= len(lines) <= 2
    assert "Traceback" not in server.log
