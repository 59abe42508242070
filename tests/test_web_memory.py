"""A web process stays below its limit of memory, with as many of the largest publishes at once as it has threads."""

import ctypes
import gzip
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from events.memory import LARGE_BYTES
from tests.memory import WEB_MB, measured, peak_mb_of
from tests.server import serving
from tests.test_in_flight import database_url

pytestmark = pytest.mark.django_db(transaction=True)


def body(number: int) -> bytes:
    event = b'{"topic": "t", "event_id": "%d", "source": "s", "payload": {"a": "%s"}}'
    return event % (number, b"x" * (settings.PUBLISH_MAX_BYTES - 200))


@measured
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_publishes_of_10_mib_at_once(coding: str, tmp_path: Path) -> None:
    publishers = settings.WEB_THREADS
    # The test's own database, where it is PostgreSQL.
    variables = {"DATABASE_URL": database_url()} if os.environ.get("TEST_DATABASE_URL") else {}
    with (
        serving(tmp_path, WEB_PROCESSES="1", CELERY_BROKER_URL="amqp://127.0.0.1:1", **variables) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
        ThreadPoolExecutor(publishers) as pool,
    ):

        def publish(number: int) -> int:
            sent = gzip.compress(body(number), 1) if coding == "gzip" else body(number)
            headers = {"Content-Type": "application/json", "Content-Encoding": coding}
            return client.post("/publish", content=sent, headers=headers).status_code

        [worker] = server.workers
        # Twice, so that what each thread and connection keeps of the first counts.
        answers = Counter(pool.map(publish, range(2 * publishers)))
        assert answers.keys() <= {202, 503}
        assert answers[202] > 1
        assert peak_mb_of(worker.pid) < WEB_MB


#: Whether a block of 2 MiB is one of its own, after a larger one has been freed.
_PROGRAM = """
import ctypes, django
django.setup()

class Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Statistics
block = bytearray(10 * 2**20)
del block
before = libc.mallinfo2().hblks
block = bytearray(2 * 2**20)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 and later tell")
def test_large_blocks_go_back_to_the_system_in_every_process_of_the_service() -> None:
    assert LARGE_BYTES < 2 * 2**20
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, cwd=settings.BASE_DIR)
    assert (done.stdout, done.stderr) == ("1\n", "")
