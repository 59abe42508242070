"""`python -m tests.faults`, which is `make faults`: breaks the service for minutes under load, and proves its books."""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from tests.faults.kinds import Faults
from tests.faults.publishers import Proof, Publishers, prove
from tests.faults.service import PATIENCE, Service, runs, until

#: Seconds in which the service has to store again what is published after a fault.
LIMIT_SECONDS = 10.0
#: How often each kind comes up, against the others. Those that take long are few, or nothing else would be done.
WEIGHTS = {
    **dict.fromkeys(("pool process", "gunicorn worker", "broker"), 16),
    **dict.fromkeys(("all parts", "beat", "Celery main", "gunicorn master"), 4),
    **dict.fromkeys(("FLUSHALL", "message lost", "message twice"), 4),
    **dict.fromkeys(("supervisor", "two drains"), 2),
    "broker refuses writes": 4,
    **dict.fromkeys(("broker hangs", "broker gone", "database locked", "worker frozen", "deadly batch"), 1),
}
#: Share of the faults that hit while the one before is not recovered from.
IN_A_ROW = 0.2


def main() -> int:
    """Run, print, and say with the exit code whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long at least (default 10)")
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill at least (default 200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    # An end like Ctrl-C's, in which the service is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say(f"seed {options.seed}, {options.minutes:g} minutes and {options.kills} kills at least")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="aggregator-faults-") as folder, Service(Path(folder)) as service:
        faults = Faults(service, chance)
        with Publishers(service.url, seed=options.seed, pause_seconds=0.1) as publishers:
            recoveries, faults_done = rounds(service, faults, publishers, options.minutes * 60, options.kills)
        # Whatever becomes of the proof, what was done is known.
        say(table(faults, recoveries, faults_done))
        until(lambda: service.pending() == 0, "nothing is pending")
        proof = prove(service, publishers.published)
        audit = service.audit()
        wrong = [*proof.wrong, *map(repr, publishers.errors)]
        if audit.returncode:
            wrong.append(f"audit: {audit.stdout}{audit.stderr}")
        processes = service.processes()
    if any(map(runs, processes)):
        wrong.append("a process is left")
    for kind, seconds in recoveries.items():
        if max(seconds) > LIMIT_SECONDS:
            wrong.append(f"{kind}: recovering took {max(seconds):.1f} s")
    say(verdict(proof, audit_clean=not audit.returncode))
    for line in wrong:
        say(f"WRONG: {line}")
    return 1 if wrong else 0


def rounds(
    service: Service, faults: Faults, publishers: Publishers, seconds: float, kills: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Break and wait, again and again. Returns the seconds that recovering took and the number of faults, by kind."""
    recoveries: dict[str, list[float]] = defaultdict(list)
    done: dict[str, int] = defaultdict(int)
    names = list(faults.kinds)
    weights = [WEIGHTS[name] for name in names]
    chance = faults.chance
    started = time.monotonic()
    first = chance.sample(names, len(names))
    while first or time.monotonic() < started + seconds or faults.kills.total() < kills:
        kind = first.pop() if first else chance.choices(names, weights)[0]
        faults.kinds[kind]()
        done[kind] += 1
        passed = (
            f"{time.monotonic() - started:4.0f} s, {faults.kills.total():3} kills, {publishers.accepted:6} accepted"
        )
        if chance.random() < IN_A_ROW:
            say(f"{passed}: {kind}, and at once")
            continue
        recovered = service.recovery()
        recoveries[kind].append(PATIENCE if recovered is None else recovered)
        say(f"{passed}: {kind}, recovered in {recoveries[kind][-1]:.2f} s")
        time.sleep(chance.random())
    return recoveries, done


def table(faults: Faults, recoveries: dict[str, list[float]], done: dict[str, int]) -> str:
    """What was done and how long recovering took, as a table of Markdown."""
    rows = ["", "| fault | times | processes killed | recovery p50 | max |", "|---|---|---|---|---|"]
    for kind in faults.kinds:
        seconds = recoveries.get(kind) or [0.0]
        rows.append(
            f"| {kind} | {done[kind]} | {faults.kills[kind]} | {median(seconds):.1f} s | {max(seconds):.1f} s |"
        )
    every = [one for seconds in recoveries.values() for one in seconds]
    total = f"| all | {sum(done.values())} | {faults.kills.total()} | {median(every):.1f} s | {max(every):.1f} s |"
    return "\n".join([*rows, total, ""])


def verdict(proof: Proof, *, audit_clean: bool) -> str:
    """The numbers that matter."""
    return (
        f"accepted {proof.accepted}, accepted without an answer {proof.unnamed}, stored {proof.stored}, "
        f"lost {proof.lost}, doubled {proof.doubled}, audit {'clean' if audit_clean else 'NOT CLEAN'}"
    )


def say(text: str) -> None:
    """One line, at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
