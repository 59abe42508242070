"""What stands between strangers and the service: start-up words, deploy check, log-in, headers, proxies, secrets."""

import logging
import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.core.checks import Tags, run_checks
from django.test import Client
from django.utils.html import escape
from pytest_django import Settings

from aggregator_project import gunicorn
from aggregator_project.doors import open_doors
from events.management.commands.up import banner

#: All that a service for others needs to be told.
PRODUCTION = {
    "PRODUCTION": "true",
    "SECRET_KEY": "dQ4w9WgXcQ-not-a-secret-but-as-long-as-one-has-to-be-1234567890",
    "ALLOWED_HOSTS": "events.example.com",
    "TRUSTED_PROXIES": "10.0.0.2",
    "FLOWER_BASIC_AUTH": "operator:password",
    "PUBLISH_ON": "0.0.0.0",
}


def manage(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    ours = {*configured.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", str(configured.BASE_DIR / "manage.py"), *arguments],
        env={**environment, "DATA_DIR": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- Doors that stand open --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost", "::1"])
def test_what_only_this_machine_can_reach_is_no_open_door(settings: Settings, where: str) -> None:
    settings.PUBLISH_ON = where
    assert open_doors() == []


@pytest.mark.parametrize("where", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_what_others_can_reach_without_a_key_or_password_is_one(settings: Settings, where: str) -> None:
    settings.PUBLISH_ON = where
    api, flower = open_doors()
    assert "REQUIRE_API_KEY=true" in api
    assert "FLOWER_BASIC_AUTH" in flower


@pytest.mark.parametrize(
    ("closed", "left"),
    [
        ({"REQUIRE_API_KEY": True}, "Flower"),
        ({"FLOWER_BASIC_AUTH": ["a:b"]}, "API"),
        ({"NO_FLOWER": True}, "API"),
        ({"REQUIRE_API_KEY": True, "NO_FLOWER": True}, None),
    ],
)
def test_a_closed_door_is_not_named(settings: Settings, closed: dict[str, Any], left: str | None) -> None:
    settings.PUBLISH_ON = "0.0.0.0"
    for name, value in closed.items():
        setattr(settings, name, value)
    assert [left in door for door in open_doors()] == [True] * (left is not None)


def test_the_start_says_so_in_the_log(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.PUBLISH_ON = "0.0.0.0"
    with caplog.at_level(logging.INFO, "gunicorn"):
        gunicorn.when_ready(None)  # type: ignore[arg-type]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == open_doors() != []


def test_the_banner_of_up_says_so(settings: Settings) -> None:
    settings.PUBLISH_ON = "0.0.0.0"
    assert f"WARNING: {open_doors()[0]}" in banner(None)
    settings.PUBLISH_ON = "127.0.0.1"
    assert "WARNING" not in banner(None)


def test_the_dashboard_says_so(settings: Settings, admin_client: Client) -> None:
    settings.PUBLISH_ON = "0.0.0.0"
    page = admin_client.get("/admin/").content.decode()
    assert all(escape(door) in page for door in open_doors())
    settings.PUBLISH_ON = "127.0.0.1"
    assert "Strangers can get in" not in admin_client.get("/admin/").content.decode()


def test_the_deploy_check_fails_on_it_and_the_usual_one_does_not(settings: Settings) -> None:
    settings.PUBLISH_ON = "0.0.0.0"
    found = [
        message
        for message in run_checks(tags=[Tags.security], include_deployment_checks=True)
        if message.id == "events.E003"
    ]
    assert [message.msg for message in found] == open_doors()
    assert not [message for message in run_checks() if message.id == "events.E003"]


# --- Production -------------------------------------------------------------------------------------------------------


def test_the_deploy_check_is_clean_in_production(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", "--deploy", "--fail-level", "WARNING", **PRODUCTION)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_the_deploy_check_fails_for_a_service_that_is_open(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", "--deploy", BIND="0.0.0.0")
    assert done.returncode == 1
    assert "events.E003" in done.stderr


def test_production_does_not_start_without_what_it_needs(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", PRODUCTION="true")
    assert done.returncode == 1
    for name in ("SECRET_KEY", "ALLOWED_HOSTS", "TRUSTED_PROXIES", "FLOWER_BASIC_AUTH"):
        assert f"{name} is not set" in done.stderr
    assert not (tmp_path / "secret-key").exists()


def test_a_wrong_proxy_or_password_is_said_and_a_password_not_shown(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", TRUSTED_PROXIES="10.0.0.1/8", FLOWER_BASIC_AUTH="hunter2", THROTTLE_RATE="often")
    assert done.returncode == 1
    assert "TRUSTED_PROXIES is '10.0.0.1/8'" in done.stderr
    assert "THROTTLE_RATE is 'often'" in done.stderr
    assert "FLOWER_BASIC_AUTH must be user:password" in done.stderr
    assert "hunter2" not in done.stderr


#: What a page says in production, asked for through the proxy.
_ASK = """
from django.test import Client
def ask(path, **more):
    return Client().get(path, headers={"Host": "events.example.com", **more.pop("headers", {})}, **more)
through = {"REMOTE_ADDR": "10.0.0.2", "headers": {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}}
page = ask("/admin/login/", **through)
print(page.status_code, page["Strict-Transport-Security"], page["Referrer-Policy"], page.cookies["csrftoken"]["secure"])
print(ask("/stats", **through).status_code)
plain = ask("/stats")
print(plain.status_code, plain["Location"])
lie = ask("/stats", headers={"X-Forwarded-Proto": "https"})
print(lie.status_code)
print(ask("/health").status_code, ask("/health", headers={"Host": "10.1.2.3:8080"}).status_code)
two = {"X-Forwarded-For": "192.0.2.1, 10.0.0.2", "X-Forwarded-Proto": "https,http"}
print(ask("/stats", REMOTE_ADDR="10.0.0.2", headers=two).status_code)
print(ask("/metrics").status_code)
print(ask("/stats", headers={"Host": "evil.example"}).status_code)
"""


def test_production_is_for_https_only(tmp_path: Path) -> None:
    assert manage(tmp_path, "migrate", "-v0", **PRODUCTION).returncode == 0
    done = manage(tmp_path, "shell", "-v0", "-c", _ASK, **PRODUCTION)
    assert done.stdout.splitlines() == [
        "200 max-age=31536000; includeSubDomains same-origin True",
        "401",
        "301 https://events.example.com/stats",
        "301",
        "200 200",
        "401",
        "401",
        "400",
    ], done.stderr
    assert "Traceback" not in done.stderr


# --- Secrets ----------------------------------------------------------------------------------------------------------


def test_the_secret_key_is_made_once_and_is_its_owners_only(tmp_path: Path) -> None:
    ask = ("shell", "-v0", "-c", "from django.conf import settings; print(settings.SECRET_KEY)")
    assert manage(tmp_path, "migrate", "-v0").returncode == 0
    first, second = (manage(tmp_path, *ask).stdout for _ in range(2))
    assert first == second
    assert len(first) > 50
    assert stat.S_IMODE((tmp_path / "secret-key").stat().st_mode) == 0o600


def test_flower_asks_for_the_password(settings: Settings) -> None:
    settings.FLOWER_BASIC_AUTH = ["operator:password"]
    assert runpy.run_path(str(Path(gunicorn.__file__).with_name("flower.py")))["basic_auth"] == ["operator:password"]


# --- Log-in -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(db: None, settings: Settings) -> User:
    settings.AXES_ENABLED = True
    return User.objects.create_superuser("operator", password="right")


def log_in(password: str, address: str = "192.0.2.1", name: str = "operator") -> Any:
    return Client().post("/admin/login/?next=/admin/", {"username": name, "password": password}, REMOTE_ADDR=address)


@pytest.mark.usefixtures("operator")
def test_after_ten_wrong_passwords_the_right_one_does_not_help_either() -> None:
    answers = [log_in("wrong", name=f"user{number % 3}").status_code for number in range(10)]
    assert answers[:9] == [200] * 9
    answer = log_in("right")
    assert answer.status_code == 429
    assert int(answer["Retry-After"]) == 900


@pytest.mark.usefixtures("operator")
def test_nobody_else_is_locked_out() -> None:
    for _ in range(11):
        log_in("wrong")
    assert log_in("right", address="192.0.2.2").status_code == 302


@pytest.mark.usefixtures("operator")
def test_an_ipv6_network_is_one_stranger() -> None:
    for number in range(11):
        log_in("wrong", address=f"2001:db8::{number:x}")
    assert log_in("right", address="2001:db8::ffff").status_code == 429
    assert log_in("right", address="2001:db8:0:1::1").status_code == 302


@pytest.mark.usefixtures("operator")
def test_who_is_locked_out_makes_no_more_rows_or_counts() -> None:
    for _ in range(15):
        log_in("wrong")
    assert AccessAttempt.objects.get().failures_since_start == 10


@pytest.mark.usefixtures("operator")
def test_a_right_password_forgets_the_wrong_ones() -> None:
    for _ in range(3):
        for _ in range(5):
            log_in("wrong")
        assert log_in("right").status_code == 302


@pytest.mark.usefixtures("operator")
def test_logging_in_leads_to_the_admin_also_without_a_place_to_go() -> None:
    answer = Client().post("/admin/login/", {"username": "operator", "password": "right"})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


# --- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/login/", "/docs", "/", "/overview"])
def test_pages_run_no_inline_script_and_nothing_from_elsewhere(client: Client, path: str) -> None:
    policy = dict(part.strip().split(" ", 1) for part in client.get(path)["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "http" not in " ".join(policy.values())
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/login/", "/docs", "/"])
def test_pages_have_no_inline_script(client: Client, path: str) -> None:
    for tag in client.get(path, headers={"Accept": "text/html"}).content.decode().split("<script")[1:]:
        assert tag.split(">", 1)[0].count("src=") == 1 or 'type="application/json"' in tag


@pytest.mark.django_db
def test_every_answer_says_what_it_is_and_may_not_be_framed(client: Client) -> None:
    for path in ("/health", "/stats", "/docs", "/nothing", "/admin/login/"):
        answer = client.get(path)
        assert (answer["X-Content-Type-Options"], answer["X-Frame-Options"], answer["Referrer-Policy"]) == (
            "nosniff",
            "DENY",
            "same-origin",
        )


def test_the_api_pays_for_no_middleware_of_pages(client: Client) -> None:
    answer = client.get("/health")
    assert "Content-Security-Policy" not in answer
    assert not answer.cookies
