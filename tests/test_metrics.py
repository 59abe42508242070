"""/metrics: the books and what all processes counted, exact over restarts and kills; dashboard and alerts over it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.cache import cache
from django.db import OperationalError, connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from aggregator_project import requests
from events import health, inbox, metrics, scrape, store, tasks
from events.models import Batch
from tests.conftest import Publish, event
from tests.test_store import broken

Drain = Callable[[], store.Stored]
OPS = settings.BASE_DIR / "ops"


@pytest.fixture(autouse=True)
def _parts_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [health.Part(name, "ok", "", 0.1) for name in health.CHECKS]
    monkeypatch.setattr(health, "report", lambda: health.Report(parts))


def samples(text: bytes) -> dict[str, float]:
    """Each sample as it stands in the text, without its timestamp: name{label="value"} → value."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def now() -> dict[str, float]:
    return samples(scrape.scrape())


class Change:
    """How much samples have grown since it was made."""

    def __init__(self) -> None:
        self.before = now()

    def of(self, name: str) -> float:
        return now().get(name, 0.0) - self.before.get(name, 0.0)


# --- The books --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_books_are_read_from_the_database(publish: Publish, drain: Drain, client: Client) -> None:
    publish([event("1"), event("2"), event("1")])
    drain()
    publish(event("3"))
    broken(status="failed", received=7)
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    read = samples(answer.content)
    assert read["aggregator_events_published_total"] == 11
    assert read["aggregator_events_unique_total"] == 2
    assert read["aggregator_events_duplicate_total"] == 1
    assert read["aggregator_events_pending"] == 1
    assert read["aggregator_events_failed"] == 7
    assert read["aggregator_oldest_pending_seconds"] > 0


@pytest.mark.django_db
def test_what_prometheus_says_it_accepts_is_no_reason_to_refuse(client: Client) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    assert client.get("/metrics", headers={"Accept": accept}).status_code == 200


@pytest.mark.django_db
def test_a_database_that_is_away_takes_the_books_away_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(scrape.stats, "books", away)
    read = now()
    assert "aggregator_events_published_total" not in read
    assert "aggregator_rings_total result=sent" in read


@pytest.mark.django_db
def test_what_is_not_well_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [health.Part("worker", "down", "", 0), health.Part("beat", "warning", "", 0), health.Part("x", "ok", "", 0)]
    monkeypatch.setattr(health, "report", lambda: health.Report(parts))
    assert [now()[f"aggregator_up part={name}"] for name in ("worker", "beat", "x")] == [0, 0, 1]


@pytest.mark.django_db(transaction=True)
def test_the_size_of_sqlites_log_is_told(publish: Publish) -> None:
    if connection.vendor != "sqlite":
        assert "aggregator_sqlite_wal_bytes" not in now()
        return
    publish(event())
    file = Path(f"{connection.settings_dict['NAME']}-wal")
    assert now()["aggregator_sqlite_wal_bytes"] == file.stat().st_size > 0
    # It is gone when the last connection closes in order.
    connection.settings_dict["NAME"], usual = str(file) + " elsewhere", connection.settings_dict["NAME"]
    try:
        assert samples(scrape.generate_latest(scrape._WriteAheadLog())) == {"aggregator_sqlite_wal_bytes": 0}
    finally:
        connection.settings_dict["NAME"] = usual


# --- What is counted --------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_only_what_was_published_counts_as_refused(client: Client, method: str) -> None:
    change = Change()
    client.generic(method, "/publish", headers={"Host": "localhost"})
    client.generic("POST", "/publish/")
    assert [change.of(f"aggregator_publishes_refused_total reason={reason}") for reason in metrics.REFUSALS] == (
        [0] * len(metrics.REFUSALS)
    )


@pytest.mark.parametrize(("status", "reason"), [(400, "invalid"), (499, "invalid"), (500, "error"), (502, "error")])
def test_a_publishers_mistake_raises_no_alarm(status: int, reason: str) -> None:
    assert requests._reason(status) == reason


def test_every_reason_that_an_alert_names_is_one() -> None:
    rules = (OPS / "prometheus" / "alerts.yml").read_text()
    [named] = re.findall(r'publishes_refused_total\{reason=~"([^"]+)"', rules)
    assert set(named.split("|")) <= set(metrics.REFUSALS)
    assert set(requests._REASONS.values()) <= set(metrics.REFUSALS)


@pytest.mark.django_db
def test_requests_are_counted_by_view_and_status(publish: Publish, client: Client) -> None:
    change = Change()
    publish(event())
    publish({})
    client.get("/stats")
    client.get("/nothing-there")
    client.get("/admin/login/")
    client.get("/admin/login/?x")
    count = "aggregator_request_seconds_count"
    assert change.of(f"{count} status=202 view=publish") == 1
    assert change.of(f"{count} status=400 view=publish") == 1
    assert change.of(f"{count} status=200 view=stats") == 1
    assert change.of(f"{count} status=404 view=none") == 1
    assert change.of(f"{count} status=200 view=admin") == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("reason", "body", "headers"),
    [
        ("invalid", {"topic": 1}, {}),
        ("content_type", event(), {"content_type": "text/plain"}),
        ("too_large", [event(str(number)) for number in range(3)], {}),
        ("inbox_full", event(), {}),
        ("database", event(), {}),
    ],
)
def test_a_refused_publish_is_counted_by_reason(
    reason: str, body: Any, headers: dict[str, str], publish: Publish, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLISH_MAX_EVENTS = 2
    if reason in ("inbox_full", "database"):
        error = inbox.InboxFull() if reason == "inbox_full" else OperationalError("gone")

        def refuse(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(inbox, "accept", refuse)
    change = Change()
    assert publish(body, **headers).status_code >= 400
    assert {one: change.of(f"aggregator_publishes_refused_total reason={one}") for one in metrics.REFUSALS} == {
        one: float(one == reason) for one in metrics.REFUSALS
    }


@pytest.mark.django_db
def test_rings_are_counted_by_what_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Change()
    monkeypatch.setattr(inbox.current_app, "send_task", lambda *_, **__: None)
    inbox.ring()
    inbox.ring()
    inbox.answer_doorbell()

    def fail(*_: Any, **__: Any) -> bool:
        raise OSError("away")

    monkeypatch.setattr(cache, "add", fail)
    inbox.ring()
    assert [change.of(f"aggregator_rings_total result={result}") for result in ("sent", "skipped", "failed")] == [1] * 3


@pytest.mark.django_db
def test_chunks_and_drains_are_measured_when_they_stored_something(publish: Publish) -> None:
    change = Change()
    publish([event(str(number)) for number in range(6)])
    tasks.process_inbox()
    tasks.process_inbox()
    assert change.of("aggregator_chunk_events_count") == 1
    assert change.of("aggregator_chunk_events_sum") == 6
    assert change.of("aggregator_chunk_seconds_count") == 1
    assert change.of("aggregator_drain_seconds_count") == 1


@pytest.mark.django_db
def test_troubles_while_storing_are_counted_by_kind(drain: Drain, settings: Any) -> None:
    settings.INBOX_MAX_ATTEMPTS = 1
    change = Change()
    broken()
    drain()
    kinds = {
        what: change.of(f"aggregator_store_errors_total what={what}") for what in ("chunk", "batch", "dead_letter")
    }
    assert kinds == {"chunk": 1, "batch": 1, "dead_letter": 1}

    def gone(*_: Any) -> None:
        raise OperationalError("gone")

    Batch.objects.all().delete()
    with connection.execute_wrapper(gone), pytest.raises(OperationalError):
        store.store_chunk()
    assert change.of("aggregator_store_errors_total what=database") == 1


# --- Many processes ---------------------------------------------------------------------------------------------------

COUNTER = """
import pathlib, sys
from django.conf import settings
settings.configure(DATA_DIR=pathlib.Path(sys.argv[1]))
from events import metrics
for _ in range(int(sys.argv[2])):
    metrics.RING_SENT.inc()
print("counted", flush=True)
sys.stdin.read()
"""


class Counter:
    """A process that counts, and lives until it is ended."""

    def __init__(self, folder: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(folder), str(count)],
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"counted\n"

    def end(self, with_signal: int = signal.SIGKILL) -> None:
        self.process.send_signal(with_signal)
        self.process.communicate()


def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(metrics, "FOLDER", folder / "run" / "metrics")
    [family] = [family for family in scrape._Counted().collect() if family.name == "aggregator_rings"]
    return sum(sample.value for sample in family.samples if sample.labels == {"result": "sent"})


def test_processes_count_together_and_the_dead_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Counter(tmp_path, 3), Counter(tmp_path, 4)
    assert counted(tmp_path, monkeypatch) == 7
    files = sorted((tmp_path / "run" / "metrics").glob("*.db"))
    first.end()
    assert counted(tmp_path, monkeypatch) == 7
    third = Counter(tmp_path, 5)
    assert counted(tmp_path, monkeypatch) == 12
    # It goes on where the first one stopped: however many die, the files stay as many as there are processes.
    assert sorted((tmp_path / "run" / "metrics").glob("*.db")) == files
    second.end(signal.SIGTERM)
    third.end()
    assert counted(tmp_path, monkeypatch) == 12


def test_a_forked_process_counts_in_files_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = counted(settings.DATA_DIR, monkeypatch)
    metrics.RING_SENT.inc()
    child = os.fork()
    if not child:
        for _ in range(2):
            metrics.RING_SENT.inc()
        os._exit(0)
    os.waitpid(child, 0)
    metrics.RING_SENT.inc()
    assert counted(settings.DATA_DIR, monkeypatch) == before + 4


def test_a_file_that_is_broken_is_left_out_and_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counter(tmp_path, 3).end()
    file = tmp_path / "run" / "metrics" / "counter_0.db"
    (tmp_path / "run" / "metrics" / "counter_7.db").write_bytes(file.read_bytes())
    content = bytearray(file.read_bytes())
    content[4:200] = b"\xff" * 196
    file.write_bytes(content)
    assert counted(tmp_path, monkeypatch) == 3
    after = Counter(tmp_path, 2)
    assert counted(tmp_path, monkeypatch) == 5
    after.end()


NO_ROOM = """
import errno, os, pathlib, sys
from django.conf import settings
settings.configure(DATA_DIR=pathlib.Path(sys.argv[1]))
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
os.posix_fallocate = full
from events import metrics
metrics.RING_SENT.inc()
child = os.fork()
metrics.RING_SENT.inc()
if child:
    assert os.waitpid(child, 0)[1] == 0
    mapped = pathlib.Path("/proc/self/maps").read_text()
    assert str(metrics.FOLDER) not in mapped, mapped
    [ring] = metrics.RINGS.collect()
    print([sample.value for sample in ring.samples if sample.labels == {"result": "sent"}][0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc/self/maps")
def test_a_process_for_whose_counts_the_disk_has_no_room_counts_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with holes that is mapped would end it with SIGBUS."""
    Counter(tmp_path, 3).end()
    with_counts = tmp_path / "run" / "metrics" / "counter_0.db"
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path)], cwd=settings.BASE_DIR, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 2
    assert "No space left on device" in done.stderr
    # Nothing was left of the try, and nothing was taken from what others have counted.
    assert {file.name for file in with_counts.parent.glob("*.db")} == {"counter_0.db", "histogram_0.db"}
    assert counted(tmp_path, monkeypatch) == 3


@pytest.mark.django_db
def test_what_other_programs_count_in_the_folder_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counter(tmp_path, 3).end()
    folder = tmp_path / "run" / "metrics"
    content = (folder / "counter_0.db").read_bytes()
    (folder / "counter_99.db").write_bytes(content.replace(b"aggregator_rings", b"stranger_x_rings"))
    monkeypatch.setattr(metrics, "FOLDER", folder)
    lines = scrape.scrape().decode().splitlines()
    assert 'aggregator_rings_total{result="sent"} 3.0' in lines
    assert not [line for line in lines if "stranger" in line]


# --- Dashboard and alerts ---------------------------------------------------------------------------------------------


def names_there_are() -> set[str]:
    names = {sample.split()[0] for sample in now()} | {"up"}
    # A name that has no sample yet.
    return names | {"aggregator_request_seconds_bucket", "aggregator_request_seconds_count"}


def expressions() -> list[str]:
    dashboard = json.loads((OPS / "grafana" / "event-aggregator.json").read_text())
    rules = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


@pytest.mark.django_db
def test_dashboard_and_alerts_use_only_what_there_is() -> None:
    named = {name for text in expressions() for name in re.findall(r"\b(?:aggregator_\w+|up)\b", text)}
    assert len(named) > 10
    assert named - names_there_are() == set()


@pytest.mark.django_db
def test_they_ask_only_for_labels_that_there_are() -> None:
    wanted = re.findall(r'(part|reason|result)=~?"([^"]+)"', " ".join(expressions()))
    there = {"part": set(health.CHECKS), "reason": set(metrics.REFUSALS), "result": {"sent", "skipped", "failed"}}
    assert wanted
    assert [
        (label, value) for label, values in wanted for value in values.split("|") if value not in there[label]
    ] == []


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_loads_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", str(OPS / "prometheus" / "prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_have_numbers_of_their_own() -> None:
    panels = json.loads((OPS / "grafana" / "event-aggregator.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["targets"] for panel in panels)
