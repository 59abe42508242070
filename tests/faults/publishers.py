"""Publishers that write down every answer, and the proof: what was answered 202 against what the service holds.

The rule. A try that got no answer may have been accepted or not; every other answer says which. So each batch in the
database is either named by one 202 and holds just the keys of that publish, or it is named by none and holds the keys
of a try without an answer, one batch a try at most; with an Idempotency-Key, one batch a publish at most. Then
received = the events of the 202s + the events of those unnamed batches, and nothing else is there.
"""

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from publisher.client import Client
from publisher.retry import Answer, NoAnswer, ServiceUnavailable
from tests.faults.service import Service

Key = tuple[str, str]

#: Ids that publishers draw from, all of them the same: about one event in three is a duplicate of another's.
POOL = 200


@dataclass(slots=True)
class Publish:
    """One publish and what became of it. `unanswered` counts its tries that got no answer."""

    keys: tuple[Key, ...]
    idempotency_key: str | None
    batch_id: int | None = None
    unanswered: int = 0


@dataclass(slots=True)
class Proof:
    """What the service holds against what it answered. All is well when `wrong` is empty."""

    accepted: int
    unnamed: int
    stored: int
    lost: int
    doubled: int
    wrong: list[str] = field(default_factory=list)


class Publishers:
    """Threads that publish singles and batches, with duplicates among them, until they are told to stop."""

    def __init__(self, url: str, *, seed: int, count: int = 4, pause_seconds: float = 0.03) -> None:
        self.url = url
        self.published: list[Publish] = []
        self.errors: list[BaseException] = []
        self._pause = pause_seconds
        self._over = threading.Event()
        self._next = 0
        self._threads = [threading.Thread(target=self._run, args=(number, seed)) for number in range(count)]

    def __enter__(self) -> "Publishers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def accepted(self) -> int:
        """Events answered 202 so far."""
        return sum(len(publish.keys) for publish in list(self.published) if publish.batch_id is not None)

    def stop(self) -> None:
        """Let every publisher end its publish."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, seed: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        try:
            with _Recording(self.url, timeout=5, max_wait=90, sleep=lambda wait: _nap(min(wait, 0.5))) as client:
                while not self._over.is_set():
                    self._publish(client, number, chance)
                    self._over.wait(chance.random() * self._pause)
        except BaseException as error:
            self.errors.append(error)

    def _publish(self, client: "_Recording", number: int, chance: random.Random) -> None:
        size = 1 if chance.random() < 0.7 else chance.randint(2, 40)
        self._next += size
        newest = self._next
        ids = [chance.randint(max(0, newest - POOL), newest) for _ in range(size)]
        keys = tuple((f"topic-{one % 5}", str(one)) for one in ids)
        name = f"{number}-{chance.getrandbits(64):x}" if number == 0 else None
        publish = Publish(keys, name)
        self.published.append(publish)
        events = [
            {"topic": topic, "event_id": event_id, "source": f"publisher-{number}", "payload": {"n": event_id}}
            for topic, event_id in keys
        ]
        # Its tries are written down.
        with suppress(ServiceUnavailable):
            client.record(publish, events)


class _Recording(Client):
    """The client, writing down how each try ended."""

    def record(self, publish: Publish, events: list[dict[str, Any]]) -> None:
        self._current = publish
        publish.batch_id = int(self.publish(events, idempotency_key=publish.idempotency_key).batch_id)

    def _post(self, body: bytes, idempotency_key: str) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._current.idempotency_key:
            # The others are publishers that know nothing of it, as those of other people may be.
            headers["Idempotency-Key"] = idempotency_key
        try:
            return self._answer("POST", "/publish", body, headers)
        except NoAnswer:
            self._current.unanswered += 1
            raise


def _nap(seconds: float) -> None:
    threading.Event().wait(seconds)


def prove(service: Service, published: Iterable[Publish], *, one_drain: bool = True) -> Proof:
    """Compare, publish by publish and key by key. To be called when nothing is pending and nobody publishes.

    Probes (topic "probe") are not publishers' and are left out. With one drain at a time the first accepted is stored.
    """
    published = list(published)
    listed = Counter((event["topic"], event["event_id"]) for event in _all_events(service) if event["topic"] != "probe")
    batches = _batches(service)
    named = {publish.batch_id: publish for publish in published if publish.batch_id is not None}
    accepted = {key for publish in named.values() for key in publish.keys}
    unnamed = {pk: batch for pk, batch in batches.items() if pk not in named}
    proof = Proof(
        accepted=sum(len(publish.keys) for publish in named.values()),
        unnamed=sum(len(batch) for batch in unnamed.values()),
        stored=len(listed),
        lost=sum(key not in listed for key in accepted),
        doubled=sum(count - 1 for count in listed.values()),
    )
    if len(named) != sum(publish.batch_id is not None for publish in published):
        proof.wrong.append("two publishes were answered with the same batch")
    for pk, publish in named.items():
        if pk not in batches:
            proof.wrong.append(f"batch {pk} was answered 202 and is not there")
        elif Counter(publish.keys) != Counter(batches[pk]):
            proof.wrong.append(f"batch {pk} does not hold what was published")
    may_be_there: Counter[tuple[Key, ...]] = Counter()
    for publish in published:
        again = 0 if publish.idempotency_key and publish.batch_id is not None else publish.unanswered
        may_be_there[tuple(sorted(publish.keys))] += min(again, 1) if publish.idempotency_key else again
    for pk, keys in unnamed.items():
        if may_be_there[tuple(sorted(keys))] <= 0:
            proof.wrong.append(f"batch {pk} is nobody's: {keys[:3]}")
        may_be_there[tuple(sorted(keys))] -= 1
    strangers = listed.keys() - accepted - {key for keys in unnamed.values() for key in keys}
    if strangers:
        proof.wrong.append(f"{len(strangers)} events were never published")
    received = service.rows("SELECT coalesce(sum(received), 0) FROM events_batch")[0][0]
    probes = service.rows("SELECT count(*) FROM events_event WHERE topic = 'probe'")[0][0]
    if received != proof.accepted + proof.unnamed + probes:
        proof.wrong.append(f"received is {received}, not {proof.accepted} + {proof.unnamed} + {probes} probes")
    late = service.rows(
        "SELECT count(*) FROM events_event e JOIN events_duplicate d USING (topic, event_id)"
        " WHERE d.batch_id < e.batch_id"
    )[0][0]
    if late and one_drain:
        proof.wrong.append(f"{late} events were stored although the same one had been accepted before")
    unfinished = service.rows(
        "SELECT count(*) FROM events_batch WHERE status != 'processed' OR received != \"unique\" + duplicates"
    )[0][0]
    if unfinished:
        proof.wrong.append(f"{unfinished} receipts are not processed or do not add up")
    if proof.lost or proof.doubled:
        proof.wrong.append(f"{proof.lost} lost, {proof.doubled} doubled")
    return proof


def _all_events(service: Service) -> Iterable[dict[str, Any]]:
    lines = {"Accept": "application/x-ndjson"}
    with httpx.stream("GET", f"{service.url}/events", headers=lines, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            yield msgspec.json.decode(line)


def _batches(service: Service) -> dict[int, list[Key]]:
    """The keys that each batch brought, stored or dropped, without those of probes."""
    keys: defaultdict[int, list[Key]] = defaultdict(list)
    for table in ("events_event", "events_duplicate"):
        sql = f"SELECT batch_id, topic, event_id FROM {table} WHERE topic != 'probe'"
        for pk, topic, event_id in service.rows(sql):
            keys[pk].append((topic, event_id))
    return keys
