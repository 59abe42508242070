"""Whose turn it is to write. On SQLite writers queue for its one lock instead of sleeping and trying again."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction


@contextmanager
def turn() -> Iterator[None]:
    """Waits for this writer's turn on SQLite; elsewhere there is nothing to wait for.

    SQLite's busy handler sleeps, up to 100 ms at a time, and whoever wakes first wins: publishes and the drain starve
    each other while the disk is idle. A lock on a file beside the database wakes the next in line at once (flock(2)).
    It only orders our own writers; SQLite's own lock still guards the data, also against writers that know nothing of
    this one.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    # Opened anew each time: a lock belongs to the opened file, which threads and forked processes would share.
    try:
        descriptor = os.open(f"{connection.settings_dict['NAME']}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # A disk that cannot be written is the database's trouble as well, and is answered as such.
        raise OperationalError(f"no turn to write: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def writing() -> Iterator[None]:
    """A transaction that begins when it is this writer's turn.

    Raises:
        django.db.OperationalError: the database is away, locked by a stranger, or full.
    """
    with turn(), transaction.atomic():
        yield
