"""The service on several hosts: `manage.py up`, and beside it web processes and workers that share its engines."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg

from tests.faults.publishers import Publishers, prove
from tests.faults.service import PROJECT, Service, environment, free_ports, manage, runs, tethered, until


class Host:
    """A part that runs on its own: all of its processes."""

    def __init__(self, name: str, command: list[str], variables: dict[str, str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                tethered([sys.executable, "-m", *command]),
                cwd=PROJECT,
                env=environment(folder, LOG_FORMAT="json", PART=name, **variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self._process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int) -> None:
        """Sends a signal to all of them, as a host that freezes or goes down."""
        for process in self.processes():
            if runs(process):
                process.send_signal(number)

    def close(self) -> None:
        processes = self.processes()
        self.signal(signal.SIGCONT)
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        for process in processes:
            if runs(process):
                process.kill()
        self._process.wait()


class Cluster(Service):
    """`manage.py up` on the engines given. A context: leaving it stops all of it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.engines = variables
        self.hosts: list[Host] = []
        super().__init__(folder, NO_FLOWER="true", **variables)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:
            host.close()
        super().__exit__(*error)

    def worker(self, name: str = "second") -> Host:
        """One more worker host, without beat."""
        command = ["celery", "-q", "-A", "aggregator_project", "worker", "--without-mingle", "--without-gossip"]
        return self._host(name, [*command, "-n", f"{name}@%h"])

    def web(self) -> str:
        """One more web host. Returns its URL."""
        [port] = free_ports(1)
        command = ["gunicorn", "-c", "python:aggregator_project.gunicorn", "aggregator_project.wsgi"]
        self._host("web", command, PORT=str(port))
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/health", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, "the second web host answers")
        return url

    def _host(self, name: str, command: list[str], **variables: str) -> Host:
        host = Host(name, command, self._variables | variables, self.folder / name)
        self.hosts.append(host)
        return host

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        url = self.engines.get("DATABASE_URL", "")
        if not url:
            return super().rows(sql)
        parts = urlsplit(url)
        with psycopg.connect(
            host=parts.hostname, port=parts.port, user=parts.username, dbname=parts.path[1:], autocommit=True
        ) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[call-overload]

    def audit(self) -> "subprocess.CompletedProcess[str]":
        return manage(self.data, "audit", **self.engines)

    def prove_all_is_well(self, *publishers: Publishers) -> None:
        """Waits until nothing is pending, then compares everything with what was answered."""
        assert [error for one in publishers for error in one.errors] == []
        until(lambda: self.pending() == 0, "nothing is pending")
        published = [publish for one in publishers for publish in one.published]
        proof = prove(self, published, one_drain=False)
        assert proof.wrong == []
        assert proof.accepted
        audited = self.audit()
        assert audited.returncode == 0, audited.stdout
