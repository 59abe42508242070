"""The whole service for the time of a test run: `manage.py up` on free ports and a data folder of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from aggregator_project.stack import tethered

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that all parts together may take to start on a slow machine.
START_SECONDS = 100


@dataclass
class Service:
    """A running service."""

    url: str
    flower_url: str
    data: Path
    password: str = ""
    lines: list[str] = field(default_factory=list)

    def publish(self, events: list[dict[str, Any]]) -> int:
        """Publishes events as any publisher would; returns the batch's number."""
        answer = httpx.post(f"{self.url}/publish", json=events, timeout=10)
        assert answer.status_code == 202, answer.text
        number: int = answer.json()["batch_id"]
        return number

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.url}/stats", timeout=10).json()
        return stats

    def wait_until_stored(self) -> None:
        wait_for(lambda: self.stats()["pending"] == 0, "nothing is pending")

    def manage(self, *arguments: str) -> str:
        """Runs a management command on the service's data."""
        return manage(self.data, *arguments)


def manage(data: Path, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=_environment(data),
        input=given,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def wait_for(condition: Callable[[], Any], claim: str, seconds: float = 20) -> None:
    """Waits until something is so.

    Raises:
        AssertionError: it did not come to be so in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError(f"after {seconds} s it is not so that {claim}")


@contextlib.contextmanager
def running(prepare: Callable[[Path], None] | None = None) -> Iterator[Service]:
    """Starts the service, and stops all of it at the end.

    Args:
        prepare: fills the data folder before the start.
    """
    with tempfile.TemporaryDirectory(prefix="aggregator-browser-") as folder:
        data = Path(folder)
        if prepare:
            prepare(data)
        port, flower_port = _free_port(), _free_port()
        service = Service(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{flower_port}", data)
        command = [sys.executable, "manage.py", "up", "--data-dir", folder]
        process = subprocess.Popen(
            # Tied to this process: whatever ends the tests ends the service.
            tethered([*command, "--port", str(port), "--flower-port", str(flower_port)]),
            cwd=ROOT,
            env=_environment(data),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        reader = threading.Thread(target=_read, args=(process, service), daemon=True)
        reader.start()
        try:
            wait_for(
                lambda: process.poll() is not None or httpx.get(f"{service.url}/health").status_code == 200,
                "the service answers",
                START_SECONDS,
            )
            assert process.poll() is None, "the service ended by itself"
            wait_for(lambda: service.password, "the admin's password was printed")
            yield service
        except BaseException:
            sys.stderr.writelines(service.lines[-30:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join(5)


def _read(process: "subprocess.Popen[str]", service: Service) -> None:
    assert process.stdout
    for line in process.stdout:
        service.lines.append(line)
        if found := re.search(r"as admin with (\S+)", line):
            service.password = found[1]


def _environment(data: Path) -> dict[str, str]:
    # Nothing of the caller's own settings: the service that is looked at is the one that starts without any.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "DATA_DIR": str(data),
        "LOG_FORMAT": "json",
        "DJANGO_SETTINGS_MODULE": "aggregator_project.settings",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
