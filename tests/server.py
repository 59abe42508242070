"""The web part as it is run: gunicorn on a port and a data folder of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from django.conf import settings

#: Seconds a start may take on a busy machine.
START_SECONDS = 90


class Server:
    """One gunicorn.

    Attributes:
        url: where it answers.
        port: the same, for raw connections.
        folder: its DATA_DIR.
        pid: its master process.
        environment: what it was started with, for commands on the same folder.
        log: what it has written.
        process: its master.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, port: int, environment: dict[str, str]) -> None:
        self.folder, self.port, self._environment = folder, port, environment
        self.url = f"http://127.0.0.1:{port}"
        self.pid = 0
        self.environment: dict[str, str] = {}
        self._log = folder / "web.log"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        """Its processes that answer requests."""
        return psutil.Process(self.process.pid).children()

    def manage(self, *arguments: str) -> bytes:
        """Runs a command of manage.py with the service's settings and returns what it prints."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=self._environment,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def say(self, *parts: bytes) -> bytes:
        """Sends bytes as they are and returns all that comes until the other side closes."""
        with self.connect() as opened:
            for part in parts:
                opened.sendall(part)
            answer = b""
            while data := opened.recv(65536):
                answer += data
            return answer


@contextmanager
def serving(folder: Path, *, overrides: str = "", ulimit: str = "", **variables: str) -> Iterator[Server]:
    """Runs gunicorn until the block ends.

    Args:
        folder: an empty folder.
        overrides: lines of Python behind aggregator_project/gunicorn.py, to shorten what nobody wants to wait for.
        ulimit: options of the shell's ulimit, for what the service may have.
        variables: settings.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | {
        "DATA_DIR": str(folder),
        "PORT": str(port),
        "CACHE_URL": "locmem://",
        "LOG_FORMAT": "json",
        **variables,
    }
    server = Server(folder, port, environment)
    root = settings.BASE_DIR
    (folder / "configuration.py").write_text(f"from aggregator_project.gunicorn import *\n{overrides}\n")
    with (folder / "web.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "-v0"], cwd=root, env=environment, stderr=log, check=True
        )
        command = [sys.executable, "-m", "gunicorn", "-c", str(folder / "configuration.py"), "aggregator_project.wsgi"]
        if ulimit:
            command = ["/bin/sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh", *command]
        server.process = process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
        )
    server.pid, server.environment = process.pid, environment
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{server.url}/health", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, server.log
                assert time.monotonic() < deadline, server.log
                time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
