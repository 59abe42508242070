"""Whose turn it is to write. On SQLite writers queue for its one lock instead of sleeping and trying again."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import OperationalError, connection, transaction

#: Seconds to wait for a lock for which somebody else has just waited in vain. Its holder may be stopped for good, and
#: whoever waits holds a thread of the web process.
STUCK_SECONDS = 0.1


@contextmanager
def turn() -> Iterator[None]:
    """Waits for this writer's turn on SQLite; elsewhere there is nothing to wait for.

    SQLite's busy handler sleeps, up to 100 ms at a time, and whoever wakes first wins: publishes and the drain starve
    each other while the disk is idle. A lock on a file beside the database wakes the next in line at once (flock(2)).
    It only orders our own writers; SQLite's own lock still guards the data, also against writers that know nothing of
    this one. The two together are waited for no longer than SQLITE_BUSY_SECONDS.

    Raises:
        django.db.OperationalError: another writer holds the lock and does not let go, or the disk cannot be written.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    began = time.monotonic()
    descriptor = _locked(f"{connection.settings_dict['NAME']}-turn", settings.SQLITE_BUSY_SECONDS)
    left = settings.SQLITE_BUSY_SECONDS - (time.monotonic() - began)
    # Not worth a statement after the milliseconds that other writers take.
    late = left < 0.9 * settings.SQLITE_BUSY_SECONDS
    try:
        if late:
            _wait_for_the_database(max(left, STUCK_SECONDS))
        yield
    finally:
        os.close(descriptor)
        if late:
            _wait_for_the_database(settings.SQLITE_BUSY_SECONDS)


@contextmanager
def writing() -> Iterator[None]:
    """A transaction that begins when it is this writer's turn.

    Raises:
        django.db.OperationalError: the database is away, locked by a stranger, or full.
    """
    with turn(), transaction.atomic():
        yield


def _wait_for_the_database(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


class _Waiter(threading.Thread):
    """Stands in line for the lock on behalf of a thread that may give up.

    flock(2) has no time-out, and a thread in it cannot be called back. So whoever gives up leaves the waiter standing
    where it is, and the next one who has to wait takes it over.

    Attributes:
        wanted: whether somebody waits for it. It lets go of a lock that nobody wants.
        granted: set when it has the lock and somebody wants it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(name="turn", daemon=True)
        self.path = path
        self.descriptor = _opened(path)
        self.wanted = True
        self.granted = threading.Event()
        self.start()

    def run(self) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        with _guard:
            if self.wanted:
                self.granted.set()
            else:
                _left.remove(self)
                os.close(self.descriptor)


#: Waiters that were left standing, and what guards them and their attributes.
_left: list[_Waiter] = []
_guard = threading.Lock()


def _forget_waiters() -> None:
    # A forked process has none of the threads.
    global _guard
    _guard = threading.Lock()
    _left.clear()


os.register_at_fork(after_in_child=_forget_waiters)


def _opened(path: str) -> int:
    # Opened anew each time: a lock belongs to the opened file, which threads and forked processes would share.
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # A disk that cannot be written is the database's trouble as well, and is answered as such.
        raise OperationalError(f"no turn to write: {error}") from error


def _locked(path: str, seconds: float) -> int:
    """Locks the file. Returns its descriptor, to be closed."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
    with _guard:
        stuck = [waiter for waiter in _left if waiter.path == path]
        if stuck:
            seconds = STUCK_SECONDS
            waiter = stuck[0]
            _left.remove(waiter)
            waiter.wanted = True
    if not stuck:
        waiter = _Waiter(path)
    if waiter.granted.wait(seconds):
        return waiter.descriptor
    with _guard:
        if waiter.granted.is_set():
            return waiter.descriptor
        waiter.wanted = False
        _left.append(waiter)
    raise OperationalError(f"another writer holds the lock for more than {seconds:g} s")
