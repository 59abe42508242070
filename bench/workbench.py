"""What the rows share: the folder of this run, its options, the stacks they start, and the lines that show progress."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import load
from bench.fill import fill
from bench.load import Load
from bench.service import Service, environment, migrate, running

#: Seconds of load before anything is counted: caches fill, connections open, code is imported.
WARM_UP_SECONDS = 2.0
#: Connections that publish at once.
CONNECTIONS = 16
#: Share of the events of a batch that repeat an earlier one.
DUPLICATES = 0.2


@dataclass(frozen=True)
class Measured:
    """What a load did to the service; events, per second of the load."""

    load: Load
    accepted: float
    stored: float
    left: float
    left_later: float


@dataclass
class Workbench:
    """One run of the benchmark."""

    folder: Path
    seconds: float
    runs: int
    large: int
    keep: Path | None
    say: Callable[[str], None]
    stacks: ExitStack = field(default_factory=ExitStack)
    _shared: Service | None = None
    #: What one row found and another goes by: single posts accepted per second.
    fastest: dict[int, float] = field(default_factory=dict)

    def service(self) -> Service:
        """The stack that the rows share which only write: started by the first, warm for the others."""
        if self._shared is None:
            self.say("starting the service")
            folder = self.folder / "service"
            self._shared = self.stacks.enter_context(running(folder, environment(folder)))
        return self._shared

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Without the shared stack: a row that starts its own has the machine to itself."""
        self.stacks.close()
        self._shared = None
        yield

    @contextmanager
    def fresh(self, name: str, *, events: int = 0) -> Iterator[Service]:
        """A stack of its own with so many events stored before it starts, and nothing of the benchmark's in it."""
        with TemporaryDirectory(dir=self.folder, prefix=f"{name}-") as made:
            folder = Path(made)
            variables = environment(folder, settings_module="aggregator_project.settings")
            if events:
                self._put_filled(folder / "data" / "aggregator.sqlite3", variables, events)
            self.say(f"starting a service with {events:,} events")
            with running(folder, variables) as service:
                yield service

    def _put_filled(self, database: Path, variables: dict[str, str], events: int) -> None:
        kept = self.keep / f"filled-{events}.sqlite3" if self.keep else None
        database.parent.mkdir(parents=True, exist_ok=True)
        if kept and kept.exists():
            self.say(f"copying {kept.name}")
            shutil.copyfile(kept, database)
            return
        self.say(f"filling a database with {events:,} events")
        started = time.monotonic()
        migrate(variables)
        fill(database, events)
        self.say(f"filled in {time.monotonic() - started:.0f} s")
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            unfinished = kept.with_suffix(".part")
            shutil.copyfile(database, unfinished)
            unfinished.rename(kept)

    def bodies(self, batch_size: int) -> Path:
        """The publishes of a load: all different where they are of one event, else with DUPLICATES."""
        return load.write_bodies(
            self.folder / f"bodies-{batch_size}.jsonl", batch_size, duplicates=DUPLICATES if batch_size > 1 else 0.0
        )

    def post(self, url: str, batch_size: int, *, seconds: float, rate: float | None = None) -> Load:
        """Publishes batches for a time; with a rate over four times the connections, so that none waits for another."""
        connections = CONNECTIONS * 4 if rate else CONNECTIONS
        return load.post(url, self.bodies(batch_size), connections=connections, seconds=seconds, rate=rate)

    def measure(self, service: Service, batch_size: int, *, path: str = "", seconds: float | None = None) -> Measured:
        """Publishes as fast as answers come and looks at the books before, at the end, and a second after."""
        before = service.books().processed
        done = self.post(service.url + path, batch_size, seconds=seconds or self.seconds)
        at_end = service.books()
        time.sleep(1.0)
        later = service.books()
        accepted = done.accepted * batch_size
        service.settle(before + accepted)
        return Measured(
            load=done,
            accepted=accepted / done.seconds,
            stored=(at_end.processed - before) / done.seconds,
            # What waits in a broker is in no books: it is what was accepted and is not processed.
            left=max(at_end.pending, before + accepted - at_end.processed),
            left_later=max(later.pending, before + accepted - later.processed),
        )

    def warm_up(self, service: Service, batch_size: int, *, paths: tuple[str, ...] = ("",)) -> None:
        """A load that is not counted."""
        for path in paths:
            before = service.books().processed
            done = self.post(service.url + path, batch_size, seconds=WARM_UP_SECONDS)
            service.settle(before + done.accepted * batch_size if path != "/empty" else None)
