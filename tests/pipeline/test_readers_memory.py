"""A web process stays below its ceiling, whatever is asked of it: measured on a real one with payloads of 10 MiB."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from django.conf import settings

from tests.memory import WEB_MB, measured, peak_mb_of
from tests.server import Server, serving

pytestmark = pytest.mark.slow

EVENTS = 60
#: Requests at a time: every thread of both processes has one.
READERS = 16
#: Bytes that a reader takes of an answer without end.
TAKEN = 15 * 1024 * 1024

ADMIN = "/admin/events"
#: What is asked, and how it is read.
QUESTIONS: dict[str, tuple[str, str]] = {
    "pages": ("/events", "application/json"),
    "pages of one": ("/events?limit=1&event_id={number:03}", "application/json"),
    "NDJSON": ("/events", "application/x-ndjson"),
    "CSV": ("/events", "text/csv"),
    "the admin's list": (f"{ADMIN}/event/", "*/*"),
    "an event": (f"{ADMIN}/event/{{event}}/change/", "*/*"),
    "an event's payload": (f"{ADMIN}/event/{{event}}/payload", "*/*"),
    "a duplicate": (f"{ADMIN}/duplicate/{{duplicate}}/change/", "*/*"),
    "a duplicate's payload": (f"{ADMIN}/duplicate/{{duplicate}}/payload", "*/*"),
    "a dead letter": (f"{ADMIN}/batch/1/change/", "*/*"),
    "a dead letter's body": (f"{ADMIN}/batch/1/body", "*/*"),
    "exported CSV": (f"{ADMIN}/event/export.csv", "*/*"),
    "exported NDJSON": (f"{ADMIN}/event/export.ndjson", "*/*"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("memory")) as server:
        yield server


@pytest.fixture(scope="module")
def session(server: Server) -> str:
    script = f"from tests.pipeline import large_rows; large_rows.main({EVENTS})"
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v0", "-c", script],
        env=server.environment,
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def peaks(server: Server) -> list[int]:
    """The most memory in megabytes that each web process had since it began."""
    return [peak_mb_of(worker.pid) for worker in server.workers]


@measured
@pytest.mark.timeout(600)
def test_no_question_makes_a_web_process_large(server: Server, session: str) -> None:
    """All questions one after the other, sixteen readers each, so that what one leaves behind counts for the next."""
    processes = server.workers
    grown: dict[str, list[int]] = {"nothing": peaks(server)}
    with ThreadPoolExecutor(READERS) as pool:
        for name, question in QUESTIONS.items():
            asked = [pool.submit(ask, server, session, question, number) for number in range(READERS)]
            statuses = {each.result() for each in asked}
            # Half the threads stream at a time; the other readers are told to come back.
            assert statuses <= {200, 503}, name
            assert 200 in statuses, name
            grown[name] = peaks(server)
    assert len(processes) == settings.WEB_PROCESSES
    assert server.workers == processes, "one has been replaced"
    assert max(map(max, grown.values())) < WEB_MB, grown


def ask(server: Server, session: str, question: tuple[str, str], number: int) -> int:
    path, accept = question
    path = path.format(number=number, event=number % EVENTS + 1, duplicate=number % 4 + 1)
    with (
        httpx.Client(base_url=server.url, cookies={"sessionid": session}, timeout=120) as client,
        client.stream("GET", path, headers={"Accept": accept}) as answer,
    ):
        taken = 0
        for piece in answer.iter_bytes(1024 * 1024):
            taken += len(piece)
            if taken > TAKEN:
                break
        return answer.status_code
