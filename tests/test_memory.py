"""What a web process takes at most, with as many of the largest bodies at once as it has threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from aggregator_project.stack import MMAP_THRESHOLD_BYTES

#: Megabytes that operations.md promises for a web process.
PROMISED = 400

PROGRAM = """
import gzip, io, sys, threading, django
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command

call_command("migrate", verbosity=0)
application = WSGIHandler()
event = b'{"topic": "t", "event_id": "1", "source": "s", "payload": {"a": %s}}'
size = 10 * 2**20 - len(event) - 10
kind = sys.argv[1]
body = event % (b'"' + b'x' * size + b'"')
environment = {"CONTENT_TYPE": "application/json"}
if kind == "compressed":
    body, environment["HTTP_CONTENT_ENCODING"] = gzip.compress(body), "gzip"
statuses = []

def publish():
    for _ in range(2):
        # A copy, as each request has its own.
        sent = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(b"".join([body[:1], body[1:]]))}
        request = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/publish", "SERVER_NAME": "localhost", "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
        }
        answer = application(request | environment | sent, lambda status, headers: statuses.append(status[:3]))
        list(answer)
        answer.close()

threads = [threading.Thread(target=publish) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(statuses) == 16 and set(statuses) <= {"202", "400", "503"}, statuses
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's highest memory in /proc")
@pytest.mark.parametrize("kind", ["text", "compressed"])
def test_eight_bodies_of_10_mib_at_once_keep_a_process_within_its_memory(kind: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("TEST_DATABASE_URL", "DATA_DIR")}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(settings.BASE_DIR),
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
    }
    environment.pop("DATABASE_URL", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < PROMISED
