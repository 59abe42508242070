"""Keeps the memory of a process bounded, however many of its threads have to do with large payloads at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Bytes from which on threads work one after the other. Eight threads that stay below it hold 8 MiB, and their copies.
LARGE_BYTES = 1024 * 1024

_working = threading.Lock()


@contextmanager
def one_large_at_a_time(size: int) -> Iterator[None]:
    """Waits while another thread of this process works on something large. What is small never waits.

    To fetch, encode or escape a text takes several times its size for a moment: a copy in the database's client, one
    in Python with up to four bytes a character, one in the buffer it is written to. What is left afterwards is one
    copy per reader. It must not be held while a client takes its answer.

    Args:
        size: bytes of what is worked on.
    """
    if size < LARGE_BYTES:
        yield
        return
    with _working:
        yield
