"""A backup that is made while events come in is complete: all that was answered 202 before it is in it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from tests.conftest import event
from tests.pipeline.conftest import postgresql
from tests.pipeline.engines import PostgreSQL, program
from tests.test_up import Up, until

__all__ = ["postgresql"]

MANAGE = str(settings.BASE_DIR / "manage.py")


def run(*words: str, **variables: str) -> str:
    """What a command wrote."""
    ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Load:
    """Publishes batch after batch, and remembers which were answered 202."""

    def __init__(self, url: str) -> None:
        self.accepted: list[str] = []
        self._url = url
        self._stopped = threading.Event()

    def _publish(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            number = 0
            while not self._stopped.is_set():
                keys = [f"{number}-{place}" for place in range(5)]
                if client.post("/publish", json=[event(key) for key in keys]).status_code == 202:
                    self.accepted += keys
                number += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._publish)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()


def restored(tmp_path: Path, copy: Callable[[Up], object], restore: Callable[[Path], object], *urls: str) -> None:
    """Copies under load, restores into another folder and database, and proves that nothing is missing."""
    variables = [{"DATABASE_URL": url} for url in urls] or [{}, {}]
    with Up(tmp_path / "first", "--no-flower", **variables[0]) as first:
        load = Load(f"http://127.0.0.1:{first.port}")
        with load.running():
            until(lambda: len(load.accepted) > 200, "there is something to lose")
            accepted_before = list(load.accepted)
            copy(first)
            assert len(load.accepted) > len(accepted_before), "nothing was accepted while it was made"

    data = tmp_path / "second" / "data"
    data.mkdir(parents=True)
    restore(data)
    with Up(tmp_path / "second", "--no-flower", **variables[1]) as second:
        until(lambda: second.http.get("/stats").json()["pending"] == 0, "what was pending is stored")
        lines = second.http.get("/events", headers={"Accept": "application/x-ndjson"}).text.splitlines()
        assert {json.loads(line)["event_id"] for line in lines} >= set(accepted_before)
        audit = run(sys.executable, MANAGE, "audit", DATA_DIR=str(data), **variables[1])
        assert "The books are right" in audit


@pytest.mark.xdist_group("stack")
def test_a_backup_under_load_restores_all_that_was_accepted_before_it(tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite3"
    restored(
        tmp_path,
        lambda first: run(sys.executable, MANAGE, "backup", str(file), DATA_DIR=str(first.folder / "data")),
        lambda data: shutil.copy(file, data / "aggregator.sqlite3"),
    )


@pytest.mark.xdist_group("stack")
@pytest.mark.slow
def test_pg_dump_under_load_restores_all_that_was_accepted_before_it(tmp_path: Path, postgresql: PostgreSQL) -> None:
    file = str(tmp_path / "backup.dump")
    dump, restore = program("pg_dump"), program("pg_restore")
    here, there = postgresql.database(), postgresql.database()
    restored(
        tmp_path,
        lambda _: run(dump, "--format=custom", "--file", file, here),
        lambda _: run(restore, "--exit-on-error", "--no-owner", "--dbname", there, file),
        here,
        there,
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has pg_dump")
def test_a_backup_never_replaces_a_file(tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite3"
    file.write_text("of yesterday")
    with pytest.raises(CommandError, match="exists"):
        call_command("backup", str(file))
    assert file.read_text() == "of yesterday"


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has pg_dump")
def test_where_it_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("backup", str(tmp_path / "nowhere" / "backup.sqlite3"))


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has pg_dump")
def test_a_backup_is_one_file(tmp_path: Path) -> None:
    call_command("backup", str(tmp_path / "backup.sqlite3"))
    assert [left.name for left in tmp_path.iterdir()] == ["backup.sqlite3"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has manage.py backup")
def test_on_postgresql_it_says_what_to_use_instead(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="pg_dump"):
        call_command("backup", str(tmp_path / "backup"))
