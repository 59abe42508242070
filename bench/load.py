"""Puts load on an address: bodies in, how many were accepted and how long they took out.

wrk where there is one, with a script made for the bodies; else poster.py, a process of ours that costs more CPU itself.
Both send the same bodies in the same order, with fresh event ids each time around.
"""

import dataclasses
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from publisher import sample

#: Stands in the bodies where each round puts letters of its own, as many: event ids stay as long as the publisher's.
SERIES = "@@@@@@@@@@@@"
#: Events in the bodies of one round. More would only cost time to make; a repeat is found in the index all the same.
EVENTS = {1: 20_000, 100: 40_000, 1_000: 60_000}

WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local bodies = {}
for line in io.lines("%(bodies)s") do bodies[#bodies + 1] = line end
local at, round, series = #bodies, 0, nil
function request()
  at = at + 1
  if at > #bodies then
    at, round = 1, round + 1
    series = string.format("%(token)s%%04d", round)
  end
  return wrk.format(nil, nil, nil, (bodies[at]:gsub("%(series)s", series)))
end
%(delay)s
function done(summary, latency, requests)
  local broken = summary.errors
  io.write(string.format('{"answers":%%d,"refused":%%d,"broken":%%d,"seconds":%%f,"p50_ms":%%f,"p99_ms":%%f}\\n',
    summary.requests, broken.status, broken.connect + broken.read + broken.write + broken.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
#: Pauses between two requests of a connection, as long as if publishers came by chance (a Poisson process).
WRK_DELAY = """
math.randomseed(%d)
function delay() return math.floor(0.5 - math.log(1 - math.random()) * %f) end
"""


class Load(msgspec.Struct, frozen=True):
    """What came of a load: answers of any kind, those that refused, requests without answer."""

    answers: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def accepted(self) -> int:
        return self.answers - self.refused

    @property
    def rate(self) -> float:
        """Requests accepted per second."""
        return self.accepted / self.seconds


class Broken(Exception):
    """The load could not be put on the service."""


def generator() -> str:
    """What puts the load on, for the table."""
    if not (wrk := shutil.which("wrk")):
        return "bench/poster.py (wrk is not installed)"
    # Its --version ends with 1.
    words = subprocess.run([wrk, "--version"], capture_output=True, text=True, check=False).stdout.split()  # noqa: S603
    return " ".join(words[:2])


def events(batch_size: int, *, duplicates: float) -> "sample.Sample":
    """The events of one round, with SERIES in their ids."""
    made = sample.generate(EVENTS[batch_size], duplicates=duplicates)
    return dataclasses.replace(made, series=SERIES)


def write_bodies(file: Path, batch_size: int, *, duplicates: float) -> Path:
    """Writes one publish a line, unless the file is there already."""
    if not file.exists():
        made = iter(events(batch_size, duplicates=duplicates))
        lines = [msgspec.json.encode(batch[0] if batch_size == 1 else batch) for batch in _batches(made, batch_size)]
        file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def _batches(made: "Iterator[sample.Event]", size: int) -> "Iterator[list[sample.Event]]":
    while batch := list(islice(made, size)):
        yield batch


def post(url: str, bodies: Path, *, connections: int, seconds: float, rate: float | None = None) -> Load:
    """Posts to {url}/publish for a time.

    Args:
        bodies: what write_bodies() wrote.
        connections: requests under way at once; with a rate, connections that take turns to send.
        seconds: how long.
        rate: requests per second; left out, as fast as answers come.

    Raises:
        Broken: an answer was no 2xx, or did not come.
    """
    if shutil.which("wrk"):
        command = _wrk(url, bodies, connections=connections, seconds=seconds, rate=rate)
    else:
        command = [
            sys.executable,
            "-m",
            "bench.poster",
            url,
            str(bodies),
            str(connections),
            str(seconds),
            str(rate or 0),
        ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    answer = [line for line in done.stdout.splitlines() if line.startswith('{"answers"')]
    if not answer:
        raise Broken(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    load = msgspec.json.decode(answer[-1], type=Load)
    if load.refused or load.broken or not load.answers:
        raise Broken(
            f"{url}/publish: of {load.answers} answers {load.refused} were refusals, {load.broken} never came."
        )
    return load


def token() -> str:
    """Eight letters that no other round of this benchmark has."""
    return secrets.token_hex(4)


def _wrk(url: str, bodies: Path, *, connections: int, seconds: float, rate: float | None) -> list[str]:
    mine = token()
    delay = WRK_DELAY % (secrets.randbelow(2**31), 1000 * connections / rate) if rate else ""
    script = bodies.with_name(f"{bodies.stem}-{mine}.lua")
    script.write_text(WRK % {"bodies": bodies, "token": mine, "series": SERIES, "delay": delay})
    whole = str(max(1, round(seconds)))
    options = ["-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "30s", "-s", str(script)]
    return ["wrk", *options, f"{url}/publish"]
