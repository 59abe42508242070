"""Kills a process at its first step, at its second, and so on until one run survives, and looks each time what is left.

`python -m tests.faults.steps accept` or `store` prints a JSON object: the steps there were, and what was wrong after a
kill. A step is the moment before or after a statement, a commit, a turn at the lock or a ring. Each run is a fork with
a fresh copy of the database; another fork then reopens it, drains it and recounts it.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import django

#: More steps than there can be; a run that has not survived by then never will.
MOST_STEPS = 300

Say = Callable[[Any], None]


class Steps:
    """Counts steps, and ends the process with SIGKILL at the one that is given."""

    def __init__(self, last: int, say: Say) -> None:
        self.passed = 0
        self.last = last
        self.say = say

    def step(self, name: str) -> None:
        self.passed += 1
        if self.passed == self.last:
            self.say({"killed": name})
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        self.step(f"before {name}")
        yield
        self.step(f"after {name}")

    def statement(self, execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        with self.around(sql[:60]):
            return execute(sql, parameters, many, context)

    def wrap(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def stepping(*arguments: Any, **options: Any) -> Any:
            with self.around(name):
                return original(*arguments, **options)

        setattr(owner, name, stepping)

    def watch(self) -> None:
        """Make a step of all that this process does to the disk and the broker."""
        from django.db import connections
        from django.db.backends.signals import connection_created

        from events import inbox, turn

        def watch_connection(connection: Any, **_: Any) -> None:
            connection.execute_wrappers.append(self.statement)
            self.wrap(connection, "_commit")

        # Threads make connections of their own.
        connection_created.connect(watch_connection, weak=False)
        self.wrap(turn.fcntl, "flock")
        self.wrap(inbox, "ring")
        connections.close_all()


def events(*ids: str) -> list[Any]:
    """Events as wire.decode() gives them."""
    from events import wire

    raw = json.dumps([{"topic": "t", "event_id": one, "source": "s"} for one in ids]).encode()
    return list(wire.decode(raw, max_events=100))


def accept_all(say: Say) -> None:
    """A publish alone, two in one group, and one with an idempotency key; each said once accept() has returned."""
    from events import inbox

    def accept(*ids: str, key: str | None = None) -> None:
        batch = inbox.accept(events(*ids), idempotency_key=key)
        say({"accepted": batch.pk, "ids": ids})

    accept("1", "2", "2")
    group = [threading.Thread(target=accept, args=ids) for ids in (("2", "3"), ("3", "4"))]
    with inbox._group._writer:
        for thread in group:
            thread.start()
        while len(inbox._group._waiting) < len(group):
            time.sleep(0.001)
    for thread in group:
        thread.join()
    accept("4", "5", key="k")
    accept("4", "5", key="k")


def store_all(say: Say) -> None:
    """A chunk of two batches, with duplicates in one and across both, and the look that finds nothing more."""
    from events import store

    store.drain()


def two_batches(say: Say) -> None:
    """What there is for store_all() to store."""
    from events import inbox

    for ids in (("1", "2", "2"), ("2", "3")):
        say({"accepted": inbox.accept(events(*ids)).pk, "ids": ids})


def nothing(say: Say) -> None:
    """accept_all() begins with an empty inbox."""


def look(say: Say) -> None:
    """Reopen, drain, recount; say what is there."""
    from events.audit import audit
    from events.models import Batch, Duplicate, Event
    from events.store import drain

    drain()
    say({"broken": [finding.claim for finding in audit() if not finding.holds]})
    rows = {pk: [status, received] for pk, status, received in Batch.objects.values_list("pk", "status", "received")}
    say({"batches": rows, "events": list(Event.objects.values_list("batch_id", "event_id"))})
    say({"dropped": list(Duplicate.objects.values_list("batch_id", "event_id"))})


def in_a_fork(work: Callable[[Say], None]) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """Run the work in a forked process. Returns its exit status, what it said at last by name, and all it said."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(lambda said: os.write(writing, json.dumps(said).encode() + b"\n") and None)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = [json.loads(line) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, {name: value for one in said for name, value in one.items()}, said


def problems(accepted: list[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """What is wrong with what was found, given what had been accepted."""
    wrong = [f"does not hold: {claim}" for claim in found["broken"]]
    keys = [event_id for _, event_id in found["events"]]
    if len(keys) != len(set(keys)):
        wrong.append(f"doubled: {keys}")
    for one in accepted:
        batch = str(one["accepted"])
        if found["batches"].get(batch) != ["processed", len(one["ids"])]:
            wrong.append(f"batch {batch} was accepted and is {found['batches'].get(batch)}")
        held = [event_id for pk, event_id in found["events"] + found["dropped"] if str(pk) == batch]
        if sorted(held) != sorted(one["ids"]):
            wrong.append(f"batch {batch} holds {held}, not {one['ids']}")
    if len(found["events"]) + len(found["dropped"]) != sum(received for _, received in found["batches"].values()):
        wrong.append("the batches hold something else than their events")
    return wrong


def main(prepare: Callable[[Say], None], work: Callable[[Say], None]) -> dict[str, Any]:
    """Kill the work at every step, each time after the same preparation."""
    django.setup()
    from django.core.management import call_command
    from django.db import connection, connections

    call_command("migrate", verbosity=0, interactive=False)
    database = Path(connection.settings_dict["NAME"])
    connections.close_all()
    empty = database.with_suffix(".empty")
    shutil.copyfile(database, empty)

    report: dict[str, Any] = {"steps": [], "problems": [], "survived": False}
    for last in range(1, MOST_STEPS):
        for file in database.parent.glob(f"{database.name}-*"):
            file.unlink()
        shutil.copyfile(empty, database)

        def killed(say: Say, last: int = last) -> None:
            prepare(say)
            Steps(last, say).watch()
            work(say)

        status, said, all_said = in_a_fork(killed)
        if status not in (0, -signal.SIGKILL):
            report["problems"].append(f"step {last} ended with {status}")
            break
        step = said.get("killed", "none")
        looked, found, _ = in_a_fork(look)
        wrong = (
            problems([one for one in all_said if "accepted" in one], found) if looked == 0 else ["cannot be reopened"]
        )
        report["problems"] += [f"killed {step}: {one}" for one in wrong]
        if status == 0:
            report["survived"] = True
            break
        report["steps"].append(step)
    return report


if __name__ == "__main__":
    with closing(sys.stdout):
        json.dump(main(*{"accept": (nothing, accept_all), "store": (two_batches, store_all)}[sys.argv[1]]), sys.stdout)
