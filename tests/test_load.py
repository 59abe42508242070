"""The load generator: what it makes up, what it sends to a real HTTP server that keeps books, how it judges them."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from publisher import Client, ServiceUnavailable
from publisher.command import publish
from publisher.load import LoadResult, generate, percentile, run
from publisher.options import OPTIONS, add_options
from publisher.verdict import COUNTERS, judge

counts = st.integers(1, 400)
shares = st.floats(0, 0.95)
topic_numbers = st.integers(1, 25)
seeds = st.integers(0, 2**40)


# What is made up


@given(counts, shares, topic_numbers, seeds)
def test_the_same_seed_makes_the_same_events(count: int, share: float, topics: int, seed: int) -> None:
    assume(round(count * share) < count)

    first = generate(count, duplicates=share, topics=topics, seed=seed)
    second = generate(count, duplicates=share, topics=topics, seed=seed)

    assert list(first) == list(second) == list(first)


@given(counts, shares, topic_numbers, seeds)
def test_exactly_the_share_repeats_an_earlier_event_word_for_word(
    count: int, share: float, topics: int, seed: int
) -> None:
    assume(round(count * share) < count)
    earlier: dict[tuple[str, str], Any] = {}
    repeats = 0

    for event in generate(count, duplicates=share, topics=topics, seed=seed):
        key = (event["topic"], event["event_id"])
        repeats += key in earlier
        assert earlier.setdefault(key, event) == event

    assert repeats == round(count * share)
    assert len(earlier) == count - repeats


@given(counts, topic_numbers, seeds)
def test_every_event_is_one_the_service_accepts(count: int, topics: int, seed: int) -> None:
    for event in generate(count, topics=topics, seed=seed, duplicates=0):
        assert list(event) == ["topic", "event_id", "source", "timestamp", "payload"]
        assert all(1 <= len(event[name]) <= 255 for name in ("topic", "event_id", "source"))
        assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
        assert isinstance(event["payload"], dict)
        assert json.loads(json.dumps(event)) == event


@given(seeds, seeds)
def test_another_seed_makes_other_ids(one: int, other: int) -> None:
    assume(one != other)

    assert not ids(generate(50, seed=one)) & ids(generate(50, seed=other))


def test_the_same_seed_makes_the_same_events_everywhere() -> None:
    events = list(generate(5000))

    assert events[0] == {
        "topic": "user.created",
        "event_id": "evt-1-00000000",
        "source": "auth-service",
        "timestamp": "2025-10-21T14:30:00+00:00",
        "payload": {"user_id": 0, "email": "user0@example.com", "plan": 0},
    }
    assert sha256(json.dumps(events).encode()).hexdigest() == DIGEST_OF_SEED_1


#: Of the 5,000 events of seed 1, as every version and machine has to make them.
DIGEST_OF_SEED_1 = "6284523707e671a997077db6aead230c72e52054f58be830585c453d7c75204f"


def test_fresh_makes_ids_no_run_had_before() -> None:
    known = ids(generate(50))
    one, other = generate(50, fresh=True), generate(50, fresh=True)

    assert not ids(one) & known
    assert not ids(one) & ids(other)
    assert ids(one) == ids(one)


@pytest.mark.parametrize("topics", [1, 5, 23])
def test_there_are_as_many_topics_as_asked_for_and_none_is_rare(topics: int) -> None:
    sizes = Counter(event["topic"] for event in generate(5000, topics=topics))

    assert len(sizes) == topics
    assert min(sizes.values()) > 5000 / topics / 2


def test_repeats_are_spread_over_the_whole_run() -> None:
    seen: set[str] = set()
    repeats = []
    for position, event in enumerate(generate(5000, duplicates=0.2)):
        if event["event_id"] in seen:
            repeats.append(position)
        seen.add(event["event_id"])

    tenths = Counter(position // 500 for position in repeats)

    assert all(tenths[tenth] > 50 for tenth in range(10))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"count": 0}, "count"),
        ({"count": 5, "topics": 0}, "topic"),
        ({"count": 5, "duplicates": 1.0}, "share"),
        ({"count": 5, "duplicates": -0.1}, "share"),
        ({"count": 5, "duplicates": 0.99}, "nothing to repeat"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        generate(**arguments)


def ids(sample: Any) -> set[str]:
    return {event["event_id"] for event in sample}


# What is sent


class Service:
    """A server that stores each event once and keeps books, and can be told to be difficult."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stored: dict[tuple[str, str], Any] = {}
        self.batches: list[int] = []
        self.connections: set[tuple[str, int]] = set()
        self.books = dict.fromkeys(COUNTERS, 0)
        #: Answers to give to publishes before any is accepted: status, body, headers.
        self.first: list[tuple[int, Any, dict[str, str]]] = []
        self.loses_everything = False
        #: Whether the API key may only publish.
        self.hides_its_books = False
        self.idempotency_keys: list[str] = []
        self.has_accepted = threading.Event()
        service = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                if self.path == "/stats" and service.hides_its_books:
                    self.say(403, {"detail": "This needs an API key with the scope read."}, {})
                else:
                    self.say(200, {"status": "healthy"} if self.path == "/health" else service.books, {})

            def do_POST(self) -> None:
                events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.connections.add(self.client_address)
                service.idempotency_keys.append(self.headers["Idempotency-Key"])
                with service.lock:
                    if service.first:
                        self.say(*service.first.pop(0))
                        return
                    service.accept(events)
                said = {"status": "accepted", "received": len(events), "queued": len(events), "batch_id": 1}
                self.say(202, said, {})

            def say(self, status: int, body: Any, headers: dict[str, str]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def accept(self, events: list[dict[str, Any]]) -> None:
        if self.loses_everything:
            return
        self.batches.append(len(events))
        self.books["received"] += len(events)
        for event in events:
            key = (event["topic"], event["event_id"])
            self.books["duplicate_dropped" if key in self.stored else "unique_processed"] += 1
            self.stored.setdefault(key, event)
        self.has_accepted.set()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, jitter=lambda: 0.0) as client:
        yield client


def test_every_event_of_the_sample_is_sent_once(service: Service, client: Client) -> None:
    sample = generate(1050, duplicates=0.2)

    result = run(client, sample, batch_size=100, concurrency=4)

    assert (result.sent, result.accepted, result.refused, result.unanswered, result.retries) == (1050, 1050, 0, 0, 0)
    assert (result.unique_expected, result.duplicates_expected, result.stopped) == (840, 210, None)
    assert sorted(service.batches) == [50] + [100] * 10
    assert service.books["received"] == 1050
    assert {(event["topic"], event["event_id"]): event for event in sample} == service.stored


def test_it_measures(service: Service, client: Client) -> None:
    result = run(client, generate(100), batch_size=1)

    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms < 1000 * result.seconds
    assert result.rate == pytest.approx(100 / result.seconds)


def test_each_thread_keeps_one_connection(service: Service, client: Client) -> None:
    run(client, generate(200), batch_size=1, concurrency=3)

    assert len(service.connections) == 3


def test_progress_ends_with_everything(service: Service, client: Client) -> None:
    seen: list[int] = []

    run(client, generate(30), batch_size=10, progress=seen.append)

    assert seen[-1] == 30


def test_the_rate_is_never_exceeded(service: Service, client: Client) -> None:
    result = run(client, generate(60), batch_size=10, concurrency=4, rate=300)

    # The sixth batch may start when the five before it have had their time.
    assert result.seconds >= 50 / 300


def test_a_busy_service_is_asked_again_and_the_retries_counted(service: Service, client: Client) -> None:
    service.first = [(503, {}, {}), (429, {}, {"Retry-After": "0"})]

    result = run(client, generate(50), batch_size=10)

    assert (result.accepted, result.retries, result.stopped) == (50, 2, None)


def test_a_retry_has_the_key_of_its_first_try(service: Service, client: Client) -> None:
    service.first = [(503, {}, {})]

    run(client, generate(30), batch_size=10, concurrency=1)

    first, again, *others = service.idempotency_keys
    assert first == again
    assert len({first, *others}) == 3


def test_a_refusal_ends_the_run_with_the_words_of_the_service(service: Service, client: Client) -> None:
    service.first = [(413, {"detail": "too many events"}, {})]

    result = run(client, generate(1000), batch_size=10, concurrency=1)

    assert (result.sent, result.accepted, result.refused) == (10, 0, 10)
    assert result.stopped == "refused with 413: too many events"


def test_a_refusal_ends_the_other_threads_too(service: Service, client: Client) -> None:
    service.first = [(413, {"detail": "too many events"}, {})]

    result = run(client, generate(3000), batch_size=1, concurrency=2)

    assert result.sent < 3000


def test_a_service_that_is_gone_ends_the_run() -> None:
    gone = Service()
    gone.stop()

    with Client(gone.url, max_wait=0) as client:
        result = run(client, generate(1000), batch_size=10, concurrency=1)

    assert (result.sent, result.accepted, result.unanswered, result.rate) == (10, 0, 10, 0.0)
    assert result.p99_ms == 0.0
    assert "gave up after 1 tries" in str(result.stopped)


def interrupt(accepted: int) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_tells_what_was_sent_until_then(service: Service, client: Client) -> None:
    result = run(client, generate(1000), batch_size=1, concurrency=2, rate=20, progress=ignore_the_end(interrupt))

    assert result.stopped == "interrupted"
    assert 0 < result.sent == result.accepted == service.books["received"] < 1000


def test_an_interrupted_run_does_not_wait_for_retry_after(service: Service, client: Client) -> None:
    service.first = [(503, {}, {"Retry-After": "50"})]

    result = run(client, generate(10), batch_size=10, concurrency=1, progress=ignore_the_end(interrupt))

    assert (result.stopped, result.sent, result.unanswered) == ("interrupted", 10, 10)
    assert service.batches == []


def ignore_the_end(progress: Any) -> Any:
    """Make a callback that is called once; the call at the end of a run is not what a person would interrupt."""
    calls: list[int] = []

    def once(accepted: int) -> None:
        calls.append(accepted)
        if len(calls) == 1:
            progress(accepted)

    return once


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(1, 99))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    value = percentile(ordered, percent)

    assert value in ordered
    assert 100 * sum(one <= value for one in ordered) >= percent * len(ordered)
    assert 100 * sum(one < value for one in ordered) < percent * len(ordered)


# How it is judged

DONE = LoadResult(
    sent=100,
    accepted=100,
    refused=0,
    retries=0,
    unique_expected=80,
    duplicates_expected=20,
    seconds=1.0,
    p50_ms=1.0,
    p95_ms=1.0,
    p99_ms=1.0,
    stopped=None,
)


def stats(received: int = 0, unique: int = 0, dropped: int = 0, pending: int = 0, failed: int = 0) -> dict[str, int]:
    return dict(zip(COUNTERS, (received, unique, dropped, pending, failed, 0), strict=True))


def judged(before: dict[str, int], after: dict[str, int], result: LoadResult = DONE) -> tuple[bool, str]:
    verdict = judge(before, after, result)
    return verdict.ok, " ".join(verdict.lines)


def test_a_first_run_adds_up() -> None:
    assert judged(stats(), stats(100, 80, 20)) == (True, "Nothing is missing: 100 accepted = 80 new + 20 duplicates.")


def test_a_second_run_is_all_duplicates() -> None:
    ok, text = judged(stats(100, 80, 20), stats(200, 80, 120))

    assert ok
    assert "80 events were already there" in text


def test_events_the_books_do_not_know_are_missing() -> None:
    ok, text = judged(stats(), stats(90, 72, 18))

    assert not ok
    assert "10 of 100 accepted events are missing" in text


@pytest.mark.parametrize(("pending", "failed"), [(5, 0), (0, 5)])
def test_events_that_are_neither_stored_nor_dropped_are_named(pending: int, failed: int) -> None:
    ok, text = judged(stats(), stats(100, 75, 20, pending=pending, failed=failed))

    assert not ok
    assert f"5 accepted events are neither stored nor dropped: pending +{pending}, failed +{failed}" in text


def test_a_duplicate_stored_as_new_is_wrong() -> None:
    ok, text = judged(stats(50, 50, 0), stats(150, 131, 19))

    assert not ok
    assert "81 events were stored as new, but only 80 were different" in text


def test_a_new_event_dropped_by_an_empty_service_is_wrong() -> None:
    ok, text = judged(stats(), stats(100, 79, 21))

    assert not ok
    assert "only 79 of 80 different events are new" in text


def test_what_others_publish_meanwhile_is_not_held_against_the_run() -> None:
    ok, text = judged(stats(), stats(150, 125, 22, pending=3))

    assert ok
    assert "The other 50 came from other publishers." in text


def test_a_request_without_an_answer_may_have_been_accepted() -> None:
    ok, text = judged(stats(), stats(100, 75, 25), replace(DONE, sent=100, accepted=90, stopped="gone"))

    assert ok
    assert "answer got lost" in text


def test_a_retried_request_is_accepted_once() -> None:
    ok, text = judged(stats(), stats(110, 80, 30), replace(DONE, retries=1))

    assert ok
    assert "The other 10 came from other publishers." in text


def test_where_nothing_was_accepted_nothing_is_proved() -> None:
    ok, text = judged(stats(), stats(), replace(DONE, accepted=0, refused=100, stopped="refused with 413"))

    assert not ok
    assert text == "Nothing was accepted."


def test_a_run_that_ended_early_is_judged_by_what_was_accepted() -> None:
    ended_early = replace(DONE, sent=50, accepted=50, stopped="interrupted")

    assert judged(stats(), stats(50, 44, 6), ended_early)[0]
    assert not judged(stats(), stats(49, 44, 5), ended_early)[0]


# How it is called


def parsed(*arguments: str, **environ: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="publish")
    add_options(parser, environ=environ)
    return parser.parse_args(arguments)


def test_left_out_options_have_the_documented_values() -> None:
    assert vars(parsed()) == {
        "url": "http://127.0.0.1:8080",
        "count": 5000,
        "duplicates": 0.2,
        "batch_size": 100,
        "concurrency": 4,
        "rate": None,
        "topics": 5,
        "seed": 1,
        "fresh": False,
        "api_key": None,
        "wait": 30.0,
    }


def test_every_option_can_come_from_the_environment() -> None:
    environ = {
        "AGGREGATOR_URL": "http://aggregator:8080/",
        "AGGREGATOR_API_KEY": "k",
        "PUBLISH_COUNT": "10",
        "PUBLISH_DUPLICATES": "30%",
        "PUBLISH_BATCH_SIZE": "2",
        "PUBLISH_CONCURRENCY": "3",
        "PUBLISH_RATE": "4.5",
        "PUBLISH_TOPICS": "6",
        "PUBLISH_SEED": "0",
        "PUBLISH_FRESH": "true",
        "PUBLISH_WAIT": "8",
    }
    assert set(environ) == {option.variable for option in OPTIONS}
    assert list(vars(parsed(**environ)).values()) == [
        "http://aggregator:8080", 10, 0.3, 2, 3, 4.5, 6, 0, True, "k", 8.0,
    ]  # fmt: skip


def test_the_command_line_wins_over_the_environment() -> None:
    options = parsed("--count", "7", "--no-fresh", PUBLISH_COUNT="9", PUBLISH_FRESH="1")

    assert (options.count, options.fresh) == (7, False)


def test_an_empty_variable_is_as_none() -> None:
    assert parsed(PUBLISH_RATE="").rate is None


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("--count", "many", '"many" is not a whole number'),
        ("--count", "0", "0 is too small, the least is 1"),
        ("--concurrency", "501", "501 is too large, the most is 500"),
        ("--duplicates", "120%", '"120%" is not a share from 0 to below 1'),
        ("--duplicates", "some", '"some" is not a share such as 0.2 or 20%'),
        ("--rate", "0", '"0" is not a number above 0'),
        ("--rate", "nan", '"nan" is not a number above 0'),
        ("--wait", "long", '"long" is not a number'),
        ("--seed", "-1", "-1 is too small, the least is 0"),
        ("--url", "localhost:80", "is not an address such as http://127.0.0.1:8080"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_where_it_came_from(
    name: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = next(option.variable for option in OPTIONS if option.name == name)

    with pytest.raises(SystemExit):
        parsed(f"{name}={value}")
    assert f"argument {name}: " in (said := capsys.readouterr().err)
    assert complaint in said

    with pytest.raises(SystemExit):
        parsed(**{variable: value})
    assert f"{variable}: " in (said := capsys.readouterr().err)
    assert complaint in said


def test_a_switch_is_either_on_or_off(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(PUBLISH_FRESH="perhaps")

    assert 'PUBLISH_FRESH: "perhaps" is neither true nor false' in capsys.readouterr().err


def published(*arguments: str, terminal: bool = False) -> tuple[int, str]:
    text = io.StringIO()
    code = publish(parsed(*arguments), console=Console(file=text, width=100, force_terminal=terminal))
    return code, text.getvalue()


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if f"│ {name} " in line)
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_a_first_and_a_second_run_end_well(service: Service) -> None:
    first_code, first = published("--url", service.url, "--count", "500")
    second_code, second = published("--url", service.url, "--count", "500")

    assert (first_code, second_code) == (0, 0)
    assert row(first, "accepted") == ["500"]
    assert row(first, "unique_processed") == ["0", "400", "+400"]
    assert row(second, "received") == ["500", "1,000", "+500"]
    assert row(second, "duplicate_dropped") == ["100", "600", "+500"]


def test_a_service_that_loses_events_is_found_out(service: Service) -> None:
    service.loses_everything = True

    code, text = published("--url", service.url, "--count", "50")

    assert code == 1
    assert "50 of 50 accepted events are missing from the books." in text


def test_a_service_that_stops_processing_is_found_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(client: Client) -> None:
        raise ServiceUnavailable("nothing was processed for 60 s")

    monkeypatch.setattr(Client, "wait_until_processed", give_up)

    code, text = published("--url", service.url, "--count", "50")

    assert code == 1
    assert "Did not wait any longer: nothing was processed for 60 s" in text


def test_a_refused_run_does_not_end_well(service: Service) -> None:
    service.first = [(403, {"detail": "this key may not publish"}, {})] * 4

    code, text = published("--url", service.url, "--count", "1000")

    assert code == 1
    assert "Stopped early: refused with 403: this key may not publish" in text


def test_a_publish_that_is_too_large_ends_in_an_honest_failure(service: Service) -> None:
    service.first = [(413, {"detail": "send at most 10000"}, {})]

    code, text = published("--url", service.url, "--count", "100", "--batch-size", "20000")

    assert code == 1
    assert "Stopped early: refused with 413: send at most 10000" in text
    assert "Nothing was accepted." in text
    assert "Nothing is missing" not in text


def test_a_key_that_may_only_publish_publishes_without_the_proof(service: Service) -> None:
    service.hides_its_books = True

    code, text = published("--url", service.url, "--count", "50")

    assert code == 0
    assert service.books["received"] == 50
    assert "no scope read" in text
    assert "50 accepted, each with a receipt; not checked against /stats." in text


def test_a_key_that_may_only_publish_is_still_told_of_refusals(service: Service) -> None:
    service.hides_its_books = True
    service.first = [(403, {"detail": "not this topic"}, {})] * 4

    code, text = published("--url", service.url, "--count", "1000")

    assert code == 1
    assert "not this topic" in text
    assert "Nothing was accepted." in text


def test_a_service_that_does_not_come_up_is_one_line() -> None:
    gone = Service()
    gone.stop()

    code, text = published("--url", gone.url, "--wait", "0.01")

    assert code == 1
    assert f"Cannot go on: {gone.url} is not healthy after 0.01 s" in text


def test_options_that_make_no_sense_together_are_one_line() -> None:
    code, text = published("--count", "5", "--duplicates", "0.99")

    assert (code, len(text.splitlines())) == (2, 1)


def test_a_terminal_gets_a_progress_bar_and_a_log_does_not(service: Service) -> None:
    _, shown = published("--url", service.url, "--count", "50", terminal=True)
    _, logged = published("--url", service.url, "--count", "50")

    assert "━" in shown
    assert "50/50" in shown
    assert "50/50" not in logged
    assert "\x1b" not in logged


def test_it_runs_as_a_module_with_the_environment_alone(service: Service) -> None:
    environ = {**os.environ, "AGGREGATOR_URL": service.url, "PUBLISH_COUNT": "200", "PUBLISH_DUPLICATES": "0.5"}

    ended = subprocess.run(
        [sys.executable, "-m", "publisher"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "200 accepted = 100 new + 100 duplicates" in ended.stdout


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_and_shows_what_was_sent_until_then(service: Service, way: signal.Signals) -> None:
    arguments = ["--url", service.url, "--rate", "50", "--batch-size", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "publisher", *arguments], stdout=subprocess.PIPE, text=True
    ) as running:
        service.has_accepted.wait()
        running.send_signal(way)
        text, _ = running.communicate(timeout=60)

    assert running.returncode == 130
    assert "Stopped early: interrupted" in text
    assert row(text, "accepted") == [str(service.books["received"])]
