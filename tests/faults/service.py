"""The real stack on free ports and a folder of its own: starts it, finds its processes, and leaves none behind."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import redis

#: The folder of manage.py.
PROJECT = Path(__file__).resolve().parents[2]
#: Seconds after which what is waited for is taken to never come.
PATIENCE = 60.0
#: The same for a command of manage.py: after minutes of load, an audit reads hundreds of thousands of rows.
COMMAND_PATIENCE = 600.0

#: What stands in the command of each part, once it is more than its tether.
_WORDS = {"web": "gunicorn", "worker": " worker ", "broker": "valkey-server", "flower": " flower "}


def until(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """What the condition gives once it is something. Raises AssertionError when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:.0f} s in vain until {what}")


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """An environment in which nothing but these variables says anything to the service."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "VIRTUAL_ENV"}}
    return kept | {"DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "aggregator_project.settings"} | variables


def manage(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A command of manage.py, run to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=COMMAND_PATIENCE,
        check=False,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in opened]
    for server in opened:
        server.close()
    return ports


def runs(process: psutil.Process) -> bool:
    """Whether the process is there and not just waiting to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tethered(command: list[str]) -> list[str]:
    """The command, killed when this process dies."""
    tether = PROJECT / "aggregator_project" / "tether.py"
    return [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *command]


class Service:
    """`manage.py up` in a folder. A context: leaving it stops all of it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port, flower_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "up.log"
        self._variables = {"PORT": str(self.port), "FLOWER_PORT": str(flower_port)} | variables
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        try:
            until(self.works, "the service stores what is published")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run `manage.py up` and do not wait for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # Tied to this process: a run that is killed leaves nothing behind.
                tethered([sys.executable, "manage.py", "up"]),
                cwd=PROJECT,
                env=environment(self.data, LOG_FORMAT="json", **self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> int:
        """Stop the service as a person does, and return its exit code. What does not stop is killed."""
        assert self._process is not None
        processes = self.processes()
        # A stopped process hears no SIGTERM.
        for process in processes:
            if runs(process):
                process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            for process in processes:
                if runs(process):
                    process.kill()
            until(lambda: not any(map(runs, processes)), "no process is left")

    @property
    def supervisor(self) -> psutil.Process:
        """supervisord, which `manage.py up` became."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def reap(self) -> None:
        """Wait for a supervisor that was killed."""
        assert self._process is not None
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs."""
        try:
            return [self.supervisor, *self.supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def part(self, name: str) -> psutil.Process | None:
        """The main process of a part: web, worker, broker or flower."""
        try:
            for process in self.supervisor.children():
                command = f"{' '.join(process.cmdline())} "
                if "tether.py" not in command and _WORDS[name] in command:
                    return process
        except psutil.Error:
            pass
        return None

    def children(self, name: str) -> list[psutil.Process]:
        """The processes that a part has started, oldest first."""
        main = self.part(name)
        try:
            return sorted(filter(runs, main.children()), key=lambda child: child.pid) if main else []
        except psutil.NoSuchProcess:
            return []

    def pool_and_beat(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The worker's children: those of the pool keep the temporary file of its locks open, beat does not."""
        pool, beat = [], []
        for child in self.children("worker"):
            try:
                opened = [os.readlink(entry) for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
            except OSError:
                continue
            (pool if any("/pym-" in target for target in opened) else beat).append(child)
        return pool, beat

    def redis(self) -> "redis.Redis":
        """The broker."""
        return redis.Redis(unix_socket_path=str(self.data / "broker.sock"), socket_timeout=5)

    def works(self) -> bool:
        """Whether a publish made now is stored within a second."""
        return self.recovery(seconds=1.0) is not None

    def recovery(self, *, seconds: float = PATIENCE) -> float | None:
        """Seconds until an event published from now on is stored; None when that takes longer than given."""
        started = time.monotonic()
        batch = None
        with httpx.Client(base_url=self.url, timeout=5) as http:
            while time.monotonic() < started + seconds:
                try:
                    if batch is None:
                        event = {"topic": "probe", "event_id": f"{time.time_ns()}", "source": "probe"}
                        answer = http.post("/publish", json=event)
                        batch = answer.json()["batch_id"] if answer.status_code == 202 else None
                    elif http.get(f"/batches/{batch}").json()["status"] == "processed":
                        return time.monotonic() - started
                except (httpx.TransportError, KeyError, ValueError):
                    pass
                time.sleep(0.02)
        return None

    def publish(self, topic: str, event_id: str) -> int | None:
        """Publishes an event. Returns the number of its batch; None where it was not accepted."""
        try:
            answer = httpx.post(f"{self.url}/publish", json={"topic": topic, "event_id": event_id, "source": "s"})
            return int(answer.json()["batch_id"])
        except (httpx.TransportError, KeyError, ValueError):
            return None

    def in_flight(self, process: psutil.Process) -> list[int]:
        """The batches that a process of the worker has noted as being stored (in_flight.py)."""
        for file in (self.data / "run" / "in-flight").glob("[!.]*"):
            # Those that were written before it began are of others, which have died.
            with suppress(OSError, ValueError, psutil.Error):
                if file.stat().st_mtime > process.create_time() and (noted := json.loads(file.read_text())[0]):
                    return list(noted)
        return []

    def pending(self) -> int | None:
        """How many events are pending; None while nobody answers."""
        try:
            return int(httpx.get(f"{self.url}/stats", timeout=5).json()["pending"])
        except (httpx.TransportError, KeyError, ValueError):
            return None

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What the database holds, past the service."""
        with sqlite3.connect(f"file:{self.data / 'aggregator.sqlite3'}?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(sql).fetchall()

    def audit(self) -> "subprocess.CompletedProcess[str]":
        """`manage.py audit`."""
        return manage(self.data, "audit")
