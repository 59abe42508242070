"""Keeps the memory of a process bounded, however many of its threads have to do with large payloads at once.

What a process takes at most is in docs/operations.md, under Limits; tests hold it there.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import connection

#: Bytes from which on something counts as large. Eight threads that stay below it hold 8 MiB, and their copies.
LARGE_BYTES = 1024 * 1024

_working = threading.Lock()


class Busy(Exception):
    """Other threads worked on large things for longer than this one may wait; try again later."""


@contextmanager
def one_large_at_a_time(size: int, *, timeout: float | None = None) -> Iterator[None]:
    """Waits while another thread of this process works on something large. What is small never waits.

    To fetch, decode, encode or escape a text takes several times its size for a moment: a copy in the database's
    client, one in Python with up to four bytes a character, one in the buffer it is written to. What is left afterwards
    is one copy per reader. Publishes and reads wait for the same lock, so that the two together stay within the limit.
    It must not be held while a client takes its answer, nor taken by a thread that has it.

    Args:
        size: bytes of what is worked on.
        timeout: seconds to wait at most; None is as long as it takes.

    Raises:
        Busy: the time is up.
    """
    if size < LARGE_BYTES:
        yield
        return
    if not _working.acquire(timeout=-1 if timeout is None else timeout):
        raise Busy
    try:
        yield
    finally:
        _working.release()


def drop_connection_after(size: int) -> None:
    """Closes this thread's connection after something large went through it, outside of a transaction.

    A connection keeps what it once needed. Python keeps the last 128 statements of one to SQLite, and SQLite what was
    bound to each; libpq's buffers grow to the largest message and never shrink. With a connection for each thread that
    was as much again as all the work. Opening another one costs milliseconds, writing a large body tens of them.

    Args:
        size: bytes that were written or read.
    """
    if size < LARGE_BYTES or connection.connection is None or connection.in_atomic_block:
        return
    if getattr(connection, "pool", None):
        # The pool closes a connection that is past its time, and opens another one. It would do the same with one that
        # is closed, and warn of it in the log.
        connection.connection._expire_at = 0.0
    connection.close()


def return_large_blocks() -> None:
    """Has glibc return large blocks to the system as soon as they are free.

    On its own it raises the size from which it does so to that of the largest block so far, and after the first body of
    10 MiB keeps them all, in pieces that fit no other: 200 MB more a web process. Processes inherit it.
    """
    m_mmap_threshold = -3  # from <malloc.h>
    # Other C libraries have no such function, and other habits.
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, LARGE_BYTES)
