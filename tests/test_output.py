"""What a stranger sends is shown, never obeyed: by browsers, terminals, log readers and spreadsheets."""

import csv
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from events import store
from events.models import Batch, Duplicate, Event
from tests.conftest import Publish, event

Drain = Callable[[], store.Stored]

SCRIPT = "<script>alert(1)</script>"
IMAGE = "\"'><img src=x onerror=alert(1)>"
#: Whoever runs it shows a number that stands nowhere else.
TEMPLATE = "{{ 1234567 * 7 }}{% now 'Y' %}"
ESCAPES = "\x1b[2J\x1b]0;gone\x07\x9b31m\r\n2026-01-01T00:00:00Z [info] web  all is well\u202e\u2028"
FORMULAS = [
    *(
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1+1",
        "\r=1+1",
        "\n=1",
        " =1",
        "=cmd|' /C calc'!A0",
        '=HYPERLINK("http://x")',
    ),
    # In full width, and behind the space of that width.
    *("＝1", "＋1", "－1", "＠x", "\u3000＝1"),
]


@pytest.fixture
def hostile(db: None, publish: Publish, drain: Drain) -> dict[str, Any]:
    """An event and a duplicate of it that says something else, all of whose texts are out for trouble."""
    stranger = event(IMAGE, SCRIPT, source=TEMPLATE, payload={SCRIPT: [IMAGE, ESCAPES]})
    assert publish(stranger).status_code == 202
    assert publish({**stranger, "payload": {IMAGE: SCRIPT}}, **{"Idempotency-Key": IMAGE}).status_code == 202
    drain()
    return stranger


@pytest.fixture
def failed(db: None, publish: Publish) -> Batch:
    """A dead letter whose error holds what was published."""
    publish(event(IMAGE, SCRIPT, payload={SCRIPT: IMAGE}))
    Batch.objects.update(status="failed", attempts=5, error=f"failed on {SCRIPT}{IMAGE}")
    return Batch.objects.get()


def assert_harmless(page: str) -> None:
    assert SCRIPT not in page
    assert "<img src=x" not in page
    assert str(1234567 * 7) not in page


PAGES = [
    "",
    "live",
    "events/event/",
    "events/event/?topic={topic}",
    "events/event/?event_id={id}",
    "events/event/?since={id}",
    "events/event/{event}/change/",
    "events/duplicate/",
    "events/duplicate/{duplicate}/change/",
    "events/batch/",
    "events/batch/{batch}/change/",
    "events/topictotal/",
    "events/sourcetotal/",
    "events/event/{id}/change/",
]


@pytest.mark.parametrize("path", PAGES)
def test_no_page_of_the_admin_renders_it(hostile: dict[str, Any], admin_client: Client, path: str) -> None:
    from urllib.parse import quote

    url = path.format(
        topic=quote(SCRIPT, safe=""),
        id=quote(IMAGE, safe=""),
        event=Event.objects.get().pk,
        duplicate=Duplicate.objects.get().pk,
        batch=Batch.objects.latest("pk").pk,
    )
    answer = admin_client.get(f"/admin/{url}")
    assert answer.status_code in (200, 404)
    assert_harmless(answer.content.decode())


def test_a_dead_letter_shows_its_body_and_error_and_renders_neither(failed: Batch, admin_client: Client) -> None:
    for path in ("", f"{failed.pk}/change/"):
        page = admin_client.get(f"/admin/events/batch/{path}").content.decode()
        assert_harmless(page)
        assert "&lt;script&gt;" in page


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["", "?lang=", "?version="])
def test_the_docs_show_nothing_that_stands_in_their_address(client: Client, query: str) -> None:
    from urllib.parse import quote

    for script in ("", "script=&"):
        url = f"/docs?{script}{query[1:]}{quote(SCRIPT + IMAGE)}"
        assert_harmless(client.get(url).content.decode())


def test_answers_are_json_whatever_a_browser_thinks(hostile: dict[str, Any], client: Client) -> None:
    for path in ("/events", "/stats", f"/events?{SCRIPT}=1", "/batches/1"):
        answer = client.get(path, headers={"Accept": "text/html,*/*"})
        assert answer["Content-Type"] in ("application/json", "text/csv; charset=utf-8")
        assert answer["X-Content-Type-Options"] == "nosniff"


def test_a_page_for_what_is_not_there_renders_nothing_of_its_address(client: Client) -> None:
    answer = client.get(f"/{SCRIPT}", headers={"Accept": "text/html,*/*"})
    assert answer.status_code == 404
    assert_harmless(answer.content.decode())
    assert answer["X-Content-Type-Options"] == "nosniff"


@pytest.mark.django_db
def test_a_refused_publish_repeats_no_more_than_it_has_to(publish: Publish) -> None:
    answer = publish([event(timestamp=SCRIPT + "x" * 10_000)])
    assert answer["Content-Type"] == "application/json"
    assert len(answer.content) < 500


# --- Spreadsheets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def formulas(db: None, publish: Publish, drain: Drain) -> None:
    publish([event(formula, formula, source=formula, payload={formula: formula}) for formula in FORMULAS])
    drain()


@pytest.mark.usefixtures("formulas")
@pytest.mark.parametrize("url", ["/events", "/admin/events/event/export.csv"])
def test_no_cell_of_an_exported_csv_is_a_formula(admin_client: Client, url: str) -> None:
    answer = admin_client.get(url, headers={"Accept": "text/csv"})
    text = b"".join(answer.streaming_content).decode()  # type: ignore[attr-defined]
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(FORMULAS)
    for row, formula in zip(rows, FORMULAS, strict=True):
        assert row["topic"] == row["event_id"] == row["source"] == f"'{formula}"
        for cell in row.values():
            assert cell.lstrip()[:1] not in ("=", "+", "-", "@", "＝", "＋", "－", "＠")


# --- Terminals and logs -----------------------------------------------------------------------------------------------

#: Logs what a stranger sent in every way that this service's own code and its libraries do.
_LOG = """
import logging, sys, structlog
hostile = sys.argv[1]
logging.getLogger("events").warning("doorbell out of order: %s", hostile)
logging.getLogger("events").warning(hostile)
logging.getLogger("events").warning("with extra", extra={"reason": hostile})
structlog.get_logger("events").warning(hostile, topic=hostile, topics=[hostile], number=7)
try:
    raise ValueError(hostile)
except ValueError:
    logging.getLogger("events").exception("failed on %s", hostile)
    structlog.get_logger("events").exception("failed", body=hostile.encode())
"""


def logged(form: str) -> str:
    script = (
        "import sys, os, django; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'tests.settings'); django.setup()\n"
    )
    environment = os.environ | {
        "LOG_FORMAT": form,
        "FORCE_COLOR": "",
        "NO_COLOR": "1",
        "DATA_DIR": str(settings.DATA_DIR),
    }
    done = subprocess.run(
        [sys.executable, "-c", script + _LOG, ESCAPES],
        env=environment,
        cwd=settings.BASE_DIR,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stderr.decode()


def test_a_line_for_people_obeys_nothing_and_stays_one_line() -> None:
    text = logged("console")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    # Lines of tracebacks are indented.
    beginnings = [line for line in text.splitlines() if re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert len(beginnings) == 6
    assert "all is well" in text
    assert not [line for line in beginnings if line.startswith("2026-01-01T00:00:00Z")]


def test_a_line_for_programs_is_one_line_of_json() -> None:
    lines = [json.loads(line) for line in logged("json").splitlines()]
    assert len(lines) == 6
    assert lines[1]["event"] == ESCAPES


def test_no_line_holds_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold keys, passwords and payloads."""
    for form in ("console", "json"):
        secret = f"secret-{form}"
        text = subprocess.run(
            [
                sys.executable,
                "-c",
                "import os, django; django.setup()\nimport logging\n"
                "def f(secret):\n    secret = 'secret-' + secret\n    raise ValueError('oh')\n"
                f"try: f({form!r})\nexcept ValueError: logging.getLogger('events').exception('failed')\n",
            ],
            env=os.environ | {"LOG_FORMAT": form, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            cwd=settings.BASE_DIR,
            capture_output=True,
            timeout=60,
            check=True,
        ).stderr.decode()
        assert "ValueError" in text
        assert secret not in text


@pytest.mark.django_db
def test_what_is_refused_leaves_no_line_of_a_strangers_making(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/nothing%0a2026-01-01T00:00:00Z%20[info]%20web%20all%20is%20well")
        client.get("/events?topic=%00")
    for record in caplog.records:
        assert "\n2026" not in record.getMessage()
