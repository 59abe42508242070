"""Talks to Docker and Compose by their command lines, and takes away what it made."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Of everything that is made here, so that it can be found and taken away.
NAME = f"aggregator-test-{os.getpid()}"
#: Seconds for a part to start or to come back, on a machine that is busy.
PATIENCE = 180.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Failed(Exception):
    """A claim does not hold, or a command went wrong; the text says which and how."""


def docker(*words: str, check: bool = True, seconds: float = PATIENCE) -> str:
    """Run docker and return what it wrote to stdout."""
    return _run(["docker", *words], check=check, seconds=seconds)


def _run(
    words: Sequence[str], *, check: bool = True, seconds: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words[:6])} … took longer than {seconds:.0f} s") from None
    if check and done.returncode:
        raise Failed(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout if check else done.stdout + done.stderr


def here(image: str) -> bool:
    """Whether the image is on this machine or can be had."""
    if not docker("image", "inspect", "--format", "here", image, check=False).startswith("here"):
        try:
            docker("pull", "-q", image, seconds=300)
        except Failed:
            return False
    return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(question: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Ask again and again until the answer is true; return it.

    Raises:
        Failed: it was not in time.
    """
    end = time.monotonic() + seconds
    answer: Any = None
    while time.monotonic() < end:
        try:
            if answer := question():
                return answer
        except (OSError, HTTPException, ValueError) as error:
            answer = error
        time.sleep(0.25)
    raise Failed(f"{what}: not within {seconds:.0f} s; last seen: {answer!r}")


def claim(holds: bool, text: str) -> None:
    """Say what was found, or end here."""
    if not holds:
        raise Failed(text)
    say(f"  ok  {text}")


class Service:
    """A running aggregator: where it listens on this machine, and a container of it to run commands in."""

    def __init__(self, port: int, network: str, url: str, image: str, container: str) -> None:
        self.port = port
        self.network = network
        self.url = url
        self.image = image
        self.container = container

    def get(self, path: str) -> Any:
        asked = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            asked.request("GET", path)
            answer = asked.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"{path} answered {answer.status}: {body[:300]!r}")
            return json.loads(body)
        finally:
            asked.close()

    def ready(self) -> None:
        until(lambda: self.get("/health/ready"), "the service is ready")

    def publisher(self, **variables: object) -> "Publisher":
        """Start the publisher in a container of its own."""
        name = f"{NAME}-publisher-{time.monotonic_ns()}"
        options = [word for key, value in variables.items() for word in ("-e", f"{key}={value}")]
        docker(
            "run", "-d", "--name", name, "--label", NAME, "--no-healthcheck", "--network", self.network,
            "-e", f"AGGREGATOR_URL={self.url}", *options, self.image, "python", "-m", "publisher",
        )  # fmt: skip
        return Publisher(name)

    def books(self) -> dict[str, int]:
        """/stats, once nothing is pending."""

        def settled() -> dict[str, int] | None:
            stats: dict[str, int] = self.get("/stats")
            return None if stats["pending"] else stats

        books: dict[str, int] = until(settled, "nothing is pending")
        return books

    def audit(self) -> None:
        out = docker("exec", self.container, "python", "manage.py", "audit")
        claim("The books are right" in out, f"audit: {out.strip().splitlines()[-1]}")


class Publisher:
    """The load generator, under way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def running(self) -> bool:
        return docker("inspect", "-f", "{{.State.Running}}", self.name).strip() == "true"

    def ended(self) -> str:
        """Wait for its end and return what it said last. It checks itself that all is accounted for."""
        until(lambda: not self.running(), "the publisher ends")
        said = docker("logs", self.name)
        code = docker("inspect", "-f", "{{.State.ExitCode}}", self.name).strip()
        docker("rm", "-v", self.name)
        if code != "0":
            raise Failed(f"the publisher ended with {code}\n{said[-3000:]}")
        return said.strip().splitlines()[-1]


class Compose:
    """One Compose file as a project of its own."""

    def __init__(self, file: str, **environment: object) -> None:
        self.project = f"{NAME}-{Path(file).stem.replace('.', '-')}"
        self._environment = {name: str(value) for name, value in environment.items()}
        modern = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        if not modern and not shutil.which("docker-compose"):
            raise Failed("there is neither `docker compose` nor docker-compose")
        program = ["docker", "compose"] if modern else ["docker-compose"]
        self._words = [*program, "-p", self.project, "-f", file]

    def __call__(self, *words: str, seconds: float = 2 * PATIENCE) -> str:
        return _run([*self._words, *words], seconds=seconds, environment=self._environment)

    def containers(self, service: str) -> list[str]:
        """Names of a service's containers, also of those that have ended."""
        ids = docker(
            "ps", "-aq",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        return sorted(docker("inspect", "-f", "{{.Name}}", each).strip().removeprefix("/") for each in ids)

    @property
    def network(self) -> str:
        return f"{self.project}_default"

    def down(self) -> None:
        self("down", "-v", "--remove-orphans", "-t", "5")


def clean(compose: Sequence[Compose]) -> None:
    """Take away all that was made here."""
    for left in docker("ps", "-aq", "--filter", f"label={NAME}", check=False).split():
        docker("rm", "-fv", left, check=False)
    for each in compose:
        try:
            each.down()
        except Failed as error:
            say(f"  not cleaned up: {error}")
    for volume in docker("volume", "ls", "-q", "--filter", f"name={NAME}", check=False).split():
        docker("volume", "rm", "-f", volume, check=False)
