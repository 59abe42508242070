"""The service under test: `manage.py up` in a folder of its own on free ports, and gone when the row is done."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from django.conf import settings

from events.management.commands.demo import environment_for, free_ports, running_stack
from publisher import Client

#: Seconds a first start may take on a slow machine.
START_SECONDS = 60
#: Seconds until what was accepted must be stored, however far behind the worker is.
SETTLE_SECONDS = 120.0
#: Seconds between two looks at /stats while waiting.
LOOK_SECONDS = 0.05

#: Words of a command line, and what the process is called in the table.
_PARTS = (
    ("supervise.py", "supervisor"),
    ("gunicorn", "web"),
    ("flower", "flower"),
    ("celery", "worker"),
    ("valkey", "broker"),
    ("redis", "broker"),
)


class Broken(Exception):
    """The service cannot be measured: it does not start, or does not finish what it accepted."""


@dataclass(frozen=True, kw_only=True)
class Books:
    """Events of /stats."""

    pending: int
    processed: int


@dataclass(frozen=True)
class Service:
    """A running stack."""

    url: str
    folder: Path
    environment: dict[str, str]
    stack: "subprocess.Popen[bytes]"
    http: httpx.Client

    @property
    def log(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")

    @property
    def database(self) -> Path:
        return self.folder / "data" / "aggregator.sqlite3"

    def books(self) -> Books:
        """What is pending, and what is stored or dropped as a duplicate."""
        answer = self.http.get("/stats")
        answer.raise_for_status()
        books: dict[str, Any] = answer.json()
        return Books(
            pending=books["pending"] + books["failed"], processed=books["unique_processed"] + books["duplicate_dropped"]
        )

    def settle(self, wanted: int | None = None) -> float:
        """Waits until nothing is pending and, where a number is given, so many events are processed.

        Returns:
            How many seconds that took.

        Raises:
            Broken: it takes longer than SETTLE_SECONDS; or a part keeps ending, so that starts were measured as well.
        """
        if "keeps ending" in self.log:
            raise Broken(f"A part of the stack keeps ending.\n{self.log[-4000:]}")
        started = time.monotonic()
        while time.monotonic() - started < SETTLE_SECONDS:
            books = self.books()
            if not books.pending and (wanted is None or books.processed >= wanted):
                return time.monotonic() - started
            time.sleep(LOOK_SECONDS)
        raise Broken(f"After {SETTLE_SECONDS:.0f} s {books.pending:,} events are still pending, or some are lost.")

    def log_in(self) -> httpx.Client:
        """A browser's session in the admin, with the password that the first start printed."""
        found = re.search(r"Log in to the admin as admin with (\S+)", self.log)
        if not found:
            raise Broken("The stack printed no password for the admin.")
        browser = httpx.Client(base_url=self.url, timeout=120, follow_redirects=True)
        page = browser.get("/admin/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        form = {"username": "admin", "password": found[1], "csrfmiddlewaretoken": token[1] if token else ""}
        answer = browser.post("/admin/login/?next=/admin/", data=form, headers={"Referer": f"{self.url}/admin/login/"})
        if answer.status_code != 200 or answer.url.path != "/admin/":
            raise Broken(f"Logging in to the admin ended at {answer.url.path} with {answer.status_code}.")
        return browser

    def processor_seconds(self, part: str) -> dict[int, float]:
        """Seconds of processor time of each process of a part, by process id."""
        children = psutil.Process(self.stack.pid).children(recursive=True)
        return {child.pid: sum(child.cpu_times()[:2]) for child in children if _name(child.cmdline()) == part}

    def memory(self) -> dict[str, float]:
        """MB of each process: its own, and its share of what it shares with others (PSS, see proc(5))."""
        found: dict[str, float] = {}
        root = psutil.Process(self.stack.pid)
        for process in [root, *root.children(recursive=True)]:
            name = _name(process.cmdline())
            number = sum(key.split(" ")[0] == name for key in found)
            memory = process.memory_full_info()
            # Only Linux tells shares apart; elsewhere shared pages count for each process.
            found[f"{name} {number + 1}" if number else name] = getattr(memory, "pss", memory.rss) / 1e6
        return found


def _name(words: list[str]) -> str:
    line = " ".join(words)
    return next((name for word, name in _PARTS if word in line), line[:20])


def environment(folder: Path, *, settings_module: str = "bench.settings", **more: str) -> dict[str, str]:
    """The environment of a stack in the folder: every setting as a first start has it, but for the ports."""
    port, flower_port = free_ports(2)
    found = environment_for(folder / "data", port=port, flower_port=flower_port)
    return found | {"DJANGO_SETTINGS_MODULE": settings_module} | more


def migrate(variables: dict[str, str]) -> None:
    """Makes the tables, as a first start does."""
    Path(variables["DATA_DIR"]).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "migrate", "-v", "0"]
    subprocess.run(command, env=variables, check=True)  # noqa: S603 (ours)


@contextmanager
def running(folder: Path, variables: dict[str, str]) -> Iterator[Service]:
    """Runs `manage.py up` until the end of the block.

    Args:
        folder: made where it is missing; the stack's lines and data go there.
        variables: what environment() made.

    Raises:
        Broken: it does not start; its lines are in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{variables['PORT']}"
    with (
        running_stack(variables | {"PYTHONPATH": os.pathsep.join(sys.path)}, folder / "up.log") as stack,
        httpx.Client(base_url=url, timeout=60) as http,
        Client(url, sleep=lambda seconds: _sleep_while_running(stack, seconds)) as client,
    ):
        service = Service(url, folder, variables, stack, http)
        try:
            client.wait_until_healthy(START_SECONDS)
            # The worker is the last to come; what it has not stored yet would count as left over.
            client.publish([{"topic": "bench", "event_id": f"start-{stack.pid}", "source": "bench", "payload": {}}])
            service.settle()
        except Exception as error:
            raise Broken(f"The stack does not start: {error}\n{service.log[-4000:]}") from error
        yield service


def _sleep_while_running(stack: "subprocess.Popen[bytes]", seconds: float) -> None:
    if stack.poll() is not None:
        raise Broken(f"it ended with exit code {stack.returncode}")
    time.sleep(seconds)
