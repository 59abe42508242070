"""`manage.py demo`: shows on a service of its own that what goes in twice is stored once, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

from django.conf import settings
from django.core.management.base import CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from aggregator_project.stack import tethered
from events.management.base import BaseCommand
from publisher import Client, PublishRefused, ServiceUnavailable, UnexpectedAnswer
from publisher.load import LoadResult, generate, run

#: What the demo publishes.
EVENTS = 5_000
DUPLICATES = 1_000
BATCH_SIZE = 100

#: Seconds a first start may take on a slow machine.
START_SECONDS = 60

#: Seconds until a stack that does not stop is killed; it says itself that 10 are enough.
STOP_SECONDS = 15

#: What shells give for a program ended by Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


class StackEnded(Exception):
    """The service ended while the demo needed it."""


class Command(BaseCommand):
    help = "Run the service in a temporary folder, publish 5,000 events with 20 % duplicates, and check the counters."
    # It runs on settings of its own, whatever this environment says.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        # Also when `make` or a container is stopped, everything that was started is stopped and removed.
        for ending in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.default_int_handler)
        self.stdout.ending = ""
        console = Console(file=cast(IO[str], self.stdout))
        try:
            with TemporaryDirectory(prefix="aggregator-demo-") as folder:
                holds = demonstrate(Path(folder), console)
        except KeyboardInterrupt:
            console.print("Stopped. Nothing is left of it.")
            sys.exit(INTERRUPTED)
        if not holds:
            raise CommandError("The demo did not come out as it should.")
        console.print("Now run it yourself: make up")


def demonstrate(folder: Path, console: Console) -> bool:
    """Run the demo in an empty folder. Returns whether all came out as it should; shows the service's lines if not."""
    log = folder / "up.log"
    port, flower_port = free_ports(2)
    environment = environment_for(folder / "data", port=port, flower_port=flower_port)
    holds = False
    try:
        with running_stack(environment, log) as stack:
            holds = publish_and_check(stack, f"http://127.0.0.1:{port}", console) and audit(environment, console)
            console.print("Stopping the service.")
    except (StackEnded, PublishRefused, ServiceUnavailable, UnexpectedAnswer) as error:
        console.print(f"{error}", style="red", markup=False)
    if not holds and log.exists():
        console.print("What the service wrote:")
        console.file.write(log.read_text(errors="replace"))
    return holds


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def environment_for(folder: Path, *, port: int, flower_port: int) -> dict[str, str]:
    """This environment without any setting of the service: a demo must not touch the database of a real one."""
    ours = {*settings.ENVIRONMENT.names, "DJANGO_SETTINGS_MODULE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return environment | {
        "DATA_DIR": str(folder),
        "PORT": str(port),
        "FLOWER_PORT": str(flower_port),
        "LOG_FORMAT": "console",
        # Where `up` leaves word of it (running.py): other commands must not find the demo.
        "XDG_RUNTIME_DIR": str(folder.parent),
    }


@contextmanager
def running_stack(environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`manage.py up`, its lines in a file; stopped at the end, and with this process however that ends."""
    with log.open("wb") as lines:
        stack = subprocess.Popen(  # noqa: S603 (ours)
            tethered([sys.executable, str(settings.BASE_DIR / "manage.py"), "up"]),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the demo, which then stops the stack in its own order.
            start_new_session=True,
        )
    try:
        yield stack
    finally:
        stack.terminate()
        try:
            stack.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            stack.kill()
            stack.wait()


def publish_and_check(stack: "subprocess.Popen[bytes]", url: str, console: Console) -> bool:
    """Publish the sample, wait until it is processed, show the table. Returns whether the counts are right."""

    def sleep(seconds: float) -> None:
        if stack.poll() is not None:
            raise StackEnded(f"The service ended with exit code {stack.returncode}.")
        time.sleep(seconds)

    with closing(Client(url, sleep=sleep)) as client:
        console.print("Starting the service in a temporary folder.")
        client.wait_until_healthy(START_SECONDS)
        sample = generate(EVENTS, duplicates=DUPLICATES / EVENTS)
        started = time.perf_counter()
        columns = TextColumn("Publishing"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=EVENTS)
            result = run(
                client, sample, batch_size=BATCH_SIZE, progress=lambda accepted: bar.update(task, completed=accepted)
            )
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        if result.stopped:
            raise ServiceUnavailable(result.stopped)
        console.print("Waiting until nothing is pending.")
        stats = client.wait_until_processed()
        return show(console, stats, result, seconds=time.perf_counter() - started)


def show(console: Console, stats: dict[str, Any], result: LoadResult, *, seconds: float) -> bool:
    """Show what was to be and what came of it. Returns whether they are the same."""
    counts = [
        ("received", EVENTS, stats["received"]),
        ("unique", EVENTS - DUPLICATES, stats["unique_processed"]),
        ("dropped as duplicates", DUPLICATES, stats["duplicate_dropped"]),
        ("pending", 0, stats["pending"]),
    ]
    table = Table("events", "expected", "found", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, expected, found in counts:
        word = "[green]ok[/]" if found == expected else "[red]WRONG[/]"
        table.add_row(name, f"{expected:,}", f"{found:,}", word)
    table.add_section()
    table.add_row("accepted per second", "", f"{result.rate:,.0f}", "")
    table.add_row("processed per second", "", f"{EVENTS / seconds:,.0f}", "")
    console.print(table)
    return all(found == expected for _, expected, found in counts)


def audit(environment: dict[str, str], console: Console) -> bool:
    """Run `manage.py audit` on the demo's database. Returns whether the books are right."""
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "audit"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    # On stderr it names the folder, which nobody needs who sees the books hold.
    console.file.write(done.stdout if done.returncode == 0 else done.stdout + done.stderr)
    return done.returncode == 0
