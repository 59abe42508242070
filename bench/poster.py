"""Posts bodies for a time and prints what came of it: `python -m bench.poster URL BODIES CONNECTIONS SECONDS RATE`.

For machines without wrk. A process of its own, so that it shares no interpreter with what it measures; still it takes
0.13 to 0.2 ms of CPU a request from the cores it shares with the service, and the table says that it was used.
"""

import random
import sys
import threading
import time
from array import array
from pathlib import Path

import msgspec

from bench.load import SERIES, Load, token
from publisher.connection import Connection
from publisher.load import percentile
from publisher.retry import NoAnswer


class Poster:
    """What the threads share: the next body, and what came back."""

    def __init__(self, url: str, bodies: list[bytes], *, until: float, mean_pause: float) -> None:
        self._url = url
        self._bodies = bodies
        self._until = until
        self._mean_pause = mean_pause
        self._token = token()
        self._sent = 0
        self._lock = threading.Lock()
        self.answers = self.refused = self.broken = 0
        self.waits = array("d")

    def work(self) -> None:
        """Posts over one connection until the time is over."""
        connection = Connection(self._url, headers={"Accept": "*/*"}, timeout=30)
        while True:
            if self._mean_pause:
                pause = random.expovariate(1 / self._mean_pause)
                time.sleep(max(0.0, min(pause, self._until - time.monotonic())))
            if time.monotonic() >= self._until:
                connection.close()
                return
            body = self._next()
            started = time.perf_counter()
            try:
                answer = connection.post(body)
            except NoAnswer:
                with self._lock:
                    self.broken += 1
                continue
            with self._lock:
                self.waits.append(time.perf_counter() - started)
                self.answers += 1
                self.refused += answer.status >= 300

    def _next(self) -> bytes:
        with self._lock:
            number = self._sent
            self._sent += 1
        around, at = divmod(number, len(self._bodies))
        return self._bodies[at].replace(SERIES.encode(), f"{self._token}{around + 1:04d}".encode())


def main(url: str, bodies: str, connections: int, seconds: float, rate: float) -> None:
    lines = Path(bodies).read_bytes().splitlines()
    started = time.monotonic()
    poster = Poster(url, lines, until=started + seconds, mean_pause=connections / rate if rate else 0.0)
    threads = [threading.Thread(target=poster.work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    waits = sorted(poster.waits)
    load = Load(
        poster.answers,
        poster.refused,
        poster.broken,
        took,
        1000 * percentile(waits, 50),
        1000 * percentile(waits, 99),
    )
    sys.stdout.write(msgspec.json.encode(load).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
