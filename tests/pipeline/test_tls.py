"""Brokers over TLS: a certificate that nobody vouches for is refused, unless the URL says that it is meant."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from tests.faults.service import free_ports, manage, until
from tests.pipeline.engines import Redis, program

#: Rings, and says how the broker is.
RING = (
    "from events import inbox, state; from django.core.cache import cache\n"
    "print(state.broker().well, inbox.ring(even_if_rung=True))"
)


def ask(folder: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Runs RING on an installation whose broker is at the URL."""
    folder.mkdir()
    (folder / "aggregator.sqlite3").touch()
    return manage(folder, "shell", "-v", "0", "-c", RING, CELERY_BROKER_URL=url)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run([program("openssl"), *command.split(), *files], check=True, capture_output=True)
    return tmp_path / "certificate.pem"


@pytest.fixture
def port(tmp_path: Path, certificate: Path) -> Iterator[int]:
    [port] = free_ports(1)
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(tmp_path / "key.pem")]
    options = ["--tls-port", str(port), *files, "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    with closing(Redis(*options, "--requirepass", "pw", "--save", "")) as server:

        def answers() -> bool:
            try:
                return bool(redis.Redis(port=server.port, password="pw").ping())
            except redis.ConnectionError:
                return False

        until(answers, "Redis answers")
        yield port


@pytest.mark.parametrize(
    ("query", "said"),
    [("", "False False"), ("?ssl_ca_certs={ca}", "True True"), ("?ssl_cert_reqs=none", "True True")],
)
def test_redis_over_tls(tmp_path: Path, certificate: Path, port: int, query: str, said: str) -> None:
    url = f"rediss://:pw@localhost:{port}/0{query.format(ca=certificate)}"
    done = ask(tmp_path / "data", url)
    assert done.stdout.strip() == said, done.stderr


def test_rabbitmq_over_tls_looks_at_the_certificate(tmp_path: Path, port: int) -> None:
    """There is no RabbitMQ behind it: the handshake comes first."""
    url = f"amqps://guest:guest@localhost:{port}//"
    done = ask(tmp_path / "data", url)
    assert done.stdout.strip() == "False False"
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
