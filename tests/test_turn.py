"""turn.py: on SQLite writers wait in line for each other, but not for ever for one that does not let go."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connection, connections

from events import turn
from events.turn import writing
from tests.faults.service import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite has one writer"),
]


@contextmanager
def held() -> Iterator[None]:
    """Another writer has its turn."""
    descriptor = os.open(f"{connection.settings_dict['NAME']}-turn", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def impatient(settings: Any) -> Iterator[None]:
    settings.SQLITE_BUSY_SECONDS = 0.2
    yield
    until(lambda: not turn._left, "nobody stands in line")


def write() -> None:
    with writing():
        pass


def busy_milliseconds() -> int:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        return int(cursor.fetchone()[0])


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_does_not_let_go_is_trouble_of_the_database() -> None:
    with held(), pytest.raises(OperationalError, match="another writer holds the lock"):
        write()
    write()


@pytest.mark.usefixtures("impatient")
def test_who_comes_after_one_that_gave_up_does_not_wait_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits holds a thread of the web process, and others ask for /health."""
    waits: list[float] = []
    wait = threading.Event.wait

    def note(event: threading.Event, seconds: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and seconds:
            waits.append(seconds)
        return wait(event, seconds)

    with held():
        monkeypatch.setattr(threading.Event, "wait", note)
        for _ in range(3):
            with pytest.raises(OperationalError):
                write()
        monkeypatch.undo()
        assert waits == [0.2, turn.STUCK_SECONDS, turn.STUCK_SECONDS]
        assert len(turn._left) == 1, "the others wait where the first one stood"


@pytest.mark.usefixtures("impatient")
def test_whoever_gave_up_does_not_get_the_lock_afterwards() -> None:
    with held(), pytest.raises(OperationalError):
        write()
    until(lambda: not turn._left, "the one that was left standing has let go")
    with held():
        pass


def test_who_waits_goes_on_when_the_lock_is_free() -> None:
    waiting, wrote = threading.Event(), threading.Event()

    def write_elsewhere() -> None:
        waiting.set()
        try:
            write()
            wrote.set()
        finally:
            connections.close_all()

    thread = threading.Thread(target=write_elsewhere)
    with held():
        thread.start()
        assert waiting.wait(10)
        assert not wrote.is_set()
    thread.join(10)
    assert wrote.is_set()


def test_the_lock_and_the_database_together_have_one_deadline(settings: Any) -> None:
    usual = busy_milliseconds()
    settings.SQLITE_BUSY_SECONDS = 5
    free = threading.Event()

    def hold() -> None:
        with held():
            locked.set()
            free.wait(1)

    locked = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(10)
    with turn.turn():
        assert 0 < busy_milliseconds() <= 4000
    thread.join()
    assert busy_milliseconds() == usual == 5000


def test_a_forked_process_begins_without_the_threads_that_wait() -> None:
    turn._left.append(object())  # type: ignore[arg-type]
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(len(turn._left))
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        turn._left.clear()
