"""The client against a real HTTP server that answers, refuses, hangs up and stays silent as a script says."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from publisher import Client, PublishRefused, ServiceUnavailable, UnexpectedAnswer
from publisher.connection import Connection
from publisher.retry import NoAnswer, retry_after_seconds

EVENT = {"topic": "user.created", "event_id": "evt-1", "source": "auth-service", "payload": {"user_id": 1}}


@dataclass
class Reply:
    """One scripted answer."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    #: Close the connection after the answer without having said so, as servers do with idle ones.
    closes: bool = False


#: Scripted instead of a Reply: close the connection without a word, or keep it open without a word.
HANG_UP = object()
STAY_SILENT = object()


def accepted(received: int = 1) -> Reply:
    body = {"status": "accepted", "received": received, "queued": received, "batch_id": 7}
    return Reply(202, body, {"Location": "/batches/7"})


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: tuple[str, int]


class Service:
    """A server that gives the scripted answers in order and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[Request] = []
        self.over = threading.Event()
        self.closed = threading.Event()
        service = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.requests.append(Request(self.command, self.path, dict(self.headers), body, self.client_address))
                reply = service.script.pop(0) if service.script else Reply(500, "nothing is scripted")
                if reply is STAY_SILENT:
                    service.over.wait()
                if reply is HANG_UP or reply is STAY_SILENT:
                    self.close_connection = True
                    return
                text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
                self.close_connection = reply.closes

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def log_message(self, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            def shutdown_request(self, request: Any) -> None:
                super().shutdown_request(request)
                service.closed.set()

        self.server = Listening(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def client(service: Service, time: Time) -> Iterator[Client]:
    with Client(service.url, sleep=time.sleep, clock=time.clock, jitter=lambda: 0.0) as client:
        yield client


def test_a_publish_returns_the_receipt(service: Service, client: Client) -> None:
    service.script = [accepted(received=2)]

    receipt = client.publish([EVENT, {**EVENT, "event_id": "evt-2"}])

    assert (receipt.status, receipt.received, receipt.queued, receipt.batch_id) == ("accepted", 2, 2, 7)
    assert (receipt.location, receipt.tries) == ("/batches/7", 1)


def test_a_publish_posts_the_events_as_a_json_array(service: Service, client: Client) -> None:
    service.script = [accepted()]

    client.publish([EVENT])

    (request,) = service.requests
    assert (request.method, request.path) == ("POST", "/publish")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == [EVENT]


def test_the_api_key_goes_with_every_request(service: Service) -> None:
    service.script = [accepted(), Reply(body={})]

    with Client(service.url, api_key="s3cret") as client:
        client.publish([EVENT])
        client.stats()

    assert [request.headers["Authorization"] for request in service.requests] == ["Api-Key s3cret"] * 2


def test_without_a_key_none_is_sent(service: Service, client: Client) -> None:
    service.script = [accepted()]

    client.publish([EVENT])

    assert "Authorization" not in service.requests[0].headers


def keys_of(service: Service) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in service.requests]


def test_all_tries_of_a_publish_have_one_idempotency_key_and_the_next_publish_another(
    service: Service, client: Client
) -> None:
    service.script = [Reply(503), HANG_UP, accepted(), accepted()]

    client.publish([EVENT])
    client.publish([EVENT])

    first, second, third, other = keys_of(service)
    assert first == second == third != other


def test_the_callers_own_idempotency_key_wins(service: Service, client: Client) -> None:
    service.script = [accepted()]

    client.publish([EVENT], idempotency_key="order 17")

    assert keys_of(service) == ["order 17"]


@pytest.mark.parametrize("key", ["", " ", "a\nb", "é", "a" * 256])
def test_a_key_that_no_header_can_carry_is_not_sent(service: Service, client: Client, key: str) -> None:
    with pytest.raises(ValueError, match="no idempotency key"):
        client.publish([EVENT], idempotency_key=key)

    assert service.requests == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_hold_is_named_and_not_sent(service: Service, client: Client, number: float) -> None:
    event = {**EVENT, "payload": {"prices": [1.5, {"net": number}]}}

    with pytest.raises(ValueError, match=rf"events\[1\]\.payload\.prices\[1\]\.net is {number}"):
        client.publish([EVENT, event])

    assert service.requests == []


def test_null_is_sent_as_it_is(service: Service, client: Client) -> None:
    service.script = [accepted()]
    event = {**EVENT, "payload": {"none": None, "text": "null", "number": 1.5}, "timestamp": datetime(2025, 1, 1)}

    client.publish([event])

    assert json.loads(service.requests[0].body)[0]["payload"] == event["payload"]


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_service_is_asked_again_with_the_same_body(service: Service, client: Client, status: int) -> None:
    service.script = [Reply(status), accepted()]

    receipt = client.publish([EVENT])

    assert receipt.tries == 2
    assert service.requests[0].body == service.requests[1].body


@pytest.mark.parametrize("fault", [HANG_UP, STAY_SILENT], ids=["hangs up", "stays silent"])
def test_a_lost_answer_is_asked_for_again(service: Service, time: Time, fault: object) -> None:
    service.script = [fault, accepted()]

    with Client(service.url, timeout=0.2, sleep=time.sleep, clock=time.clock) as client:
        receipt = client.publish([EVENT])

    assert receipt.tries == 2


def test_retry_after_is_waited_for(service: Service, client: Client, time: Time) -> None:
    service.script = [Reply(503, headers={"Retry-After": "7"}), accepted()]

    client.publish([EVENT])

    assert time.slept == [7.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Tue, 21 Oct 2025 14:30:30 GMT", 30.0),
        ("Tue, 21 Oct 2025 14:30:30 -0000", 30.0),
        ("Tue, 21 Oct 2025 14:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("Tue, 21 Oct 2025 14:30:30 +99999999999999999999", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, now=datetime(2025, 10, 21, 14, 30, tzinfo=UTC)) == seconds


def test_a_retry_after_date_is_heeded(service: Service, client: Client, time: Time) -> None:
    service.script = [Reply(503, headers={"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"})]

    with pytest.raises(ServiceUnavailable, match="asks to wait"):
        client.publish([EVENT])

    assert time.slept == []


def test_waits_double_up_to_ten_seconds(service: Service, time: Time) -> None:
    service.script = [Reply(503)] * 9 + [accepted()]

    with Client(service.url, sleep=time.sleep, clock=time.clock, jitter=lambda: 1.0) as client:
        client.publish([EVENT])

    assert time.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])


def test_jitter_takes_its_part_of_the_whole_wait(service: Service, time: Time) -> None:
    service.script = [Reply(503), Reply(503, headers={"Retry-After": "2"}), accepted()]

    with Client(service.url, sleep=time.sleep, clock=time.clock, jitter=lambda: 0.25) as client:
        client.publish([EVENT])

    assert time.slept == pytest.approx([0.025, 2.05])


def test_it_gives_up_before_max_wait_is_over(service: Service, time: Time) -> None:
    service.script = [Reply(503, headers={"Retry-After": "4"})] * 10

    with (
        Client(service.url, max_wait=10, sleep=time.sleep, clock=time.clock, jitter=lambda: 0.0) as client,
        pytest.raises(ServiceUnavailable, match=r"gave up after 3 tries in 8\.0 s: the service answered 503"),
    ):
        client.publish([EVENT])

    assert len(service.requests) == 3


def test_a_service_that_is_not_there_is_named(time: Time) -> None:
    gone = Service()
    gone.stop()

    with (
        Client(gone.url, max_wait=1, sleep=time.sleep, clock=time.clock, jitter=lambda: 1.0) as client,
        pytest.raises(ServiceUnavailable, match=gone.url),
    ):
        client.publish([EVENT])

    assert sum(time.slept) <= 1


def test_a_refusal_carries_the_detail_and_errors_and_is_final(service: Service, client: Client) -> None:
    errors = [{"index": 3, "field": "timestamp", "message": "not a date-time"}]
    service.script = [Reply(400, {"detail": "1 event is invalid.", "errors": errors}), accepted()]

    with pytest.raises(PublishRefused, match="event 3, timestamp: not a date-time") as caught:
        client.publish([EVENT])

    assert (caught.value.status, caught.value.detail, caught.value.errors) == (400, "1 event is invalid.", errors)
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 413, 415, 422])
def test_every_other_4xx_is_a_refusal(service: Service, client: Client, status: int) -> None:
    service.script = [Reply(status, {"detail": "no"}), accepted()]

    with pytest.raises(PublishRefused, match=f"refused with {status}: no"):
        client.publish([EVENT])


def test_a_refusal_that_is_not_json_keeps_its_words(service: Service, client: Client) -> None:
    service.script = [Reply(413, "<h1>Too large</h1>")]

    with pytest.raises(PublishRefused, match="<h1>Too large</h1>"):
        client.publish([EVENT])


@pytest.mark.parametrize(
    "reply", [Reply(500, accepted().body), Reply(200, "<html>"), Reply(202, "<html>"), Reply(202, {})]
)
def test_an_answer_outside_the_contract_is_not_taken_for_a_receipt(
    service: Service, client: Client, reply: Reply
) -> None:
    service.script = [reply, accepted()]

    with pytest.raises(UnexpectedAnswer, match=str(reply.status)):
        client.publish([EVENT])


def test_connections_are_kept_alive(service: Service, client: Client) -> None:
    service.script = [accepted(), Reply(body={}), accepted()]

    client.publish([EVENT])
    client.stats()
    client.publish([EVENT])

    assert len({request.connection for request in service.requests}) == 1


def test_threads_may_share_a_client(service: Service, client: Client) -> None:
    service.script = [accepted() for _ in range(40)]
    ids = [f"evt-{number}" for number in range(40)]

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda event_id: client.publish([{**EVENT, "event_id": event_id}]), ids))

    assert len(receipts) == 40
    assert sorted(json.loads(request.body)[0]["event_id"] for request in service.requests) == sorted(ids)


def test_stats_are_asked_for_again_when_the_service_is_away(service: Service, client: Client) -> None:
    service.script = [Reply(503), Reply(body={"received": 3})]

    assert client.stats() == {"received": 3}


def test_a_read_that_is_not_allowed_says_what_the_service_said(service: Service, client: Client) -> None:
    service.script = [Reply(403, {"detail": "wrong scope"})]

    with pytest.raises(UnexpectedAnswer, match="wrong scope"):
        client.stats()


@pytest.mark.parametrize("origin", ["", "https://inside.example:8000"], ids=["relative", "absolute"])
def test_events_follow_the_links_and_never_leave_the_service(service: Service, client: Client, origin: str) -> None:
    link = f"{origin}/events?topic=a%26b&cursor=c%2B2"
    service.script = [
        Reply(body={"events": [{"id": 1}, {"id": 2}], "next": link}),
        Reply(body={"events": [{"id": 3}], "next": None}),
    ]

    events = list(client.events(topic="a&b", since=datetime(2025, 10, 21, tzinfo=UTC), limit=2))

    assert [event["id"] for event in events] == [1, 2, 3]
    assert [request.path for request in service.requests] == [
        "/events?topic=a%26b&since=2025-10-21T00%3A00%3A00%2B00%3A00&limit=2",
        "/events?topic=a%26b&cursor=c%2B2",
    ]


def test_health_is_asked_for_once(service: Service, client: Client) -> None:
    service.script = [Reply(503, {"detail": "starting"}), Reply(body={"status": "healthy"})]

    with pytest.raises(UnexpectedAnswer, match="starting"):
        client.health()

    assert client.health() == {"status": "healthy"}


def test_waiting_for_health_ends_with_the_first_healthy_answer(service: Service, client: Client, time: Time) -> None:
    service.script = [HANG_UP, Reply(503), Reply(body={"status": "healthy"})]

    client.wait_until_healthy(30)

    assert len(time.slept) == 2


def test_waiting_for_health_gives_up_and_says_what_was_wrong(service: Service, client: Client, time: Time) -> None:
    service.script = [Reply(503, {"detail": "no database"})] * 50

    with pytest.raises(ServiceUnavailable, match=r"not healthy after 3 s: .*no database"):
        client.wait_until_healthy(3)

    assert sum(time.slept) == pytest.approx(3, abs=0.3)


def books(*, received: int, pending: int) -> Reply:
    return Reply(body={"received": received, "pending": pending})


def test_waiting_for_the_inbox_ends_when_nothing_is_pending(service: Service, client: Client) -> None:
    service.script = [books(received=9, pending=pending) for pending in (9, 4, 0)]

    assert client.wait_until_processed() == {"received": 9, "pending": 0}


def test_waiting_for_the_inbox_does_not_wait_for_what_others_send_later(service: Service, client: Client) -> None:
    service.script = [books(received=9, pending=5), books(received=30, pending=25), books(received=60, pending=50)]

    assert client.wait_until_processed() == {"received": 60, "pending": 50}


def test_waiting_for_the_inbox_goes_on_as_long_as_something_is_processed(
    service: Service, client: Client, time: Time
) -> None:
    service.script = [books(received=50, pending=pending) for pending in range(50, -1, -1)]

    client.wait_until_processed(timeout_seconds=0.5)

    assert sum(time.slept) > 0.5


def test_waiting_for_the_inbox_gives_up_when_nothing_moves(service: Service, client: Client) -> None:
    service.script = [books(received=50, pending=8)] * 50

    with pytest.raises(ServiceUnavailable, match="nothing was processed for 2 s, 8 are pending"):
        client.wait_until_processed(timeout_seconds=2)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "localhost", "ftp://host", "http://", "", "http://host:port"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Client(url)


def test_an_address_may_end_with_a_slash_and_have_a_path(service: Service) -> None:
    service.script = [accepted()]

    with Client(f"{service.url}/aggregator/") as client:
        client.publish([EVENT])

    assert service.requests[0].path == "/aggregator/publish"


@pytest.fixture
def connection(service: Service) -> Iterator[Connection]:
    connection = Connection(f"{service.url}/under", headers={"Authorization": "Api-Key k"}, timeout=0.2)
    yield connection
    connection.close()


def test_a_lean_connection_posts_what_the_client_would(service: Service, connection: Connection) -> None:
    service.script = [accepted(), Reply(503, {"detail": "full"}, {"Retry-After": "3"})]

    first, second = connection.post(b"[1]"), connection.post(b"[2]")

    assert (first.status, first.location, json.loads(first.body)["batch_id"]) == (202, "/batches/7", 7)
    assert (second.status, second.retry_after) == (503, "3")
    request = service.requests[0]
    assert (request.method, request.path, request.body) == ("POST", "/under/publish", b"[1]")
    assert (request.headers["Authorization"], request.headers["Content-Type"]) == ("Api-Key k", "application/json")
    assert len({request.connection for request in service.requests}) == 1


@pytest.mark.parametrize("fault", [HANG_UP, STAY_SILENT], ids=["hangs up", "stays silent"])
def test_a_lean_connection_is_whole_again_after_a_fault(
    service: Service, connection: Connection, fault: object
) -> None:
    service.script = [fault, accepted()]

    with pytest.raises(NoAnswer, match=service.url):
        connection.post(b"[]")

    assert connection.post(b"[]").status == 202


def test_a_lean_connection_that_the_service_closed_while_idle_costs_no_retry(
    service: Service, connection: Connection
) -> None:
    service.script = [Reply(202, closes=True), accepted()]

    first = connection.post(b"[]")
    service.closed.wait()

    assert (first.status, connection.post(b"[]").status) == (202, 202)


def test_a_lean_connection_reads_a_refusal_given_before_the_body_was_read() -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse_unread() -> None:
            taken, _ = listening.accept()
            taken.recv(100)
            taken.sendall(refusal)
            taken.close()

        thread = threading.Thread(target=refuse_unread)
        thread.start()
        connection = Connection(f"http://127.0.0.1:{listening.getsockname()[1]}", headers={}, timeout=5)
        # More than both sides can buffer, so that sending ends in the reset and not in success.
        answer = connection.post(b"x" * 30_000_000)
        thread.join()
        connection.close()

    assert answer.status == 413
