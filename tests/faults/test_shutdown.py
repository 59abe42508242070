"""SIGTERM under load: requests in flight are answered, a chunk is finished or rolled back, and all end in time."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.publishers import Publishers, prove
from tests.faults.service import PATIENCE, Service, runs, until

#: Seconds in which whatever is told to end has ended.
LIMIT_SECONDS = 10


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("shutdown"), NO_FLOWER="true") as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("name", ["web", "worker", "broker", "gunicorn worker"])
def test_a_part_told_to_end_does_so_in_time_and_comes_back(service: Service, name: str) -> None:
    def told() -> psutil.Process | None:
        return next(iter(service.children("web")), None) if name == "gunicorn worker" else service.part(name)

    with Publishers(service.url, seed=1, count=2) as publishers:
        until(lambda: publishers.accepted > 50, "the load has begun")
        process = until(told, f"there is a {name}")
        with_its_own = [process, *process.children(recursive=True)]
        process.terminate()
        until(lambda: not any(map(runs, with_its_own)), f"{name} has ended", seconds=LIMIT_SECONDS)
        assert service.recovery() is not None
        publishers.stop()
        assert publishers.errors == []
    until(lambda: service.pending() == 0, "nothing is pending")
    assert service.audit().returncode == 0


def test_a_request_in_flight_is_answered(service: Service) -> None:
    """Half of it is sent before the SIGTERM, half after it."""
    body = b'{"topic": "flight", "event_id": "1", "source": "s"}'
    web = until(lambda: service.part("web"), "there is a web part")
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
        )
        # Its asking for the rest is the sign that it is under way.
        assert b"100 Continue" in connection.recv(1000)
        web.terminate()
        connection.sendall(body)
        answer = b""
        while b"HTTP/1.1 202" not in answer and (more := connection.recv(1000)):
            answer += more
        assert b"HTTP/1.1 202" in answer
    until(lambda: not runs(web), "the web part has ended", seconds=LIMIT_SECONDS)
    assert service.recovery() is not None
    assert httpx.get(f"{service.url}/events", params={"topic": "flight"}).json()["count"] == 1


def test_the_whole_service_told_to_end_does_so_cleanly_and_loses_nothing(tmp_path: Path) -> None:
    with Service(tmp_path, NO_FLOWER="true") as service:
        with Publishers(service.url, seed=2, count=2) as publishers:
            until(lambda: publishers.accepted > 100, "the load has begun")
            assert service.stop() == 0
            service.start()
            assert service.recovery() is not None
            publishers.stop()
        assert publishers.errors == []
        until(lambda: service.pending() == 0, "nothing is pending")
        assert prove(service, publishers.published).wrong == []
        assert service.audit().returncode == 0
