"""The whole of `python -m publisher` and `manage.py publish`: waits for the service, publishes, checks, shows.

In go the parsed options and a console; out comes the exit code. A terminal gets a progress bar, a log gets plain lines.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from publisher.client import Client, PublishRefused, UnexpectedAnswer
from publisher.load import LoadResult, run
from publisher.retry import ServiceUnavailable
from publisher.sample import generate
from publisher.verdict import COUNTERS, Verdict, judge

#: Seconds between two progress lines where there is no terminal.
LOG_SECONDS = 5.0

#: What shells give for a program ended by Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


def publish(options: Namespace, *, console: Console) -> int:
    """Run the load that `options` (see options.py) describe and show what came of it on `console`.

    Returns 0 if everything was accepted and is accounted for in the service's books (with a key that may not read them:
    if everything was accepted), 1 if not, 2 if the options make no sense together, 130 after Ctrl-C.
    """
    try:
        return _publish(options, console)
    except KeyboardInterrupt:
        say(console, "Interrupted before the result could be checked.")
        return INTERRUPTED
    except (PublishRefused, ServiceUnavailable, UnexpectedAnswer) as error:
        say(console, f"Cannot go on: {error}", style="red")
        return 1


def _publish(options: Namespace, console: Console) -> int:
    try:
        sample = generate(
            options.count,
            duplicates=options.duplicates,
            topics=options.topics,
            seed=options.seed,
            fresh=options.fresh,
        )
    except ValueError as error:
        say(console, f"Cannot start: {error}", style="red")
        return 2

    with Client(options.url, api_key=options.api_key) as client:
        say(console, f"Waiting up to {options.wait:g} s for {client.url} to be healthy.")
        try:
            client.wait_until_healthy(options.wait)
        except ServiceUnavailable as error:
            raise ServiceUnavailable(f"{error}; --url names another address") from None
        before = _books(client)
        if not before:
            say(console, "This API key has no scope read, so the result is not checked against /stats.", style="yellow")
        say(console, f"Publishing {sample.count:,} events, {sample.duplicates:,} of them duplicates.")
        with _progress(console, total=sample.count) as progress:
            result = run(
                client,
                sample,
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                rate=options.rate,
                progress=progress,
            )
        show_result(console, result)
        if result.stopped:
            say(console, f"Stopped early: {result.stopped}", style="red")
        proved = _with_proof(console, client, before, result) if before else _without_proof(console, result)
    if result.stopped == "interrupted":
        return INTERRUPTED
    return 0 if proved and not result.stopped else 1


def _books(client: Client) -> dict[str, Any] | None:
    """Return the books, or None where the API key may only publish."""
    try:
        return client.stats()
    except UnexpectedAnswer as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return None


def _with_proof(console: Console, client: Client, before: dict[str, Any], result: LoadResult) -> bool:
    say(console, "Waiting until the service has processed them.")
    after, late = _processed(client)
    verdict = judge(before, after, result)
    show_books(console, before, after)
    show_verdict(console, verdict)
    if late:
        say(console, late, style="red")
    return verdict.ok and not late


def _without_proof(console: Console, result: LoadResult) -> bool:
    if not result.accepted:
        say(console, "Nothing was accepted.", style="red")
        return False
    say(console, f"{result.accepted:,} accepted, each with a receipt; not checked against /stats.")
    return True


def _processed(client: Client) -> tuple[dict[str, Any], str]:
    try:
        return client.wait_until_processed(), ""
    except ServiceUnavailable as error:
        return client.stats(), f"Did not wait any longer: {error}"


@contextmanager
def _progress(console: Console, *, total: int) -> Iterator[Callable[[int], None]]:
    if not console.is_terminal:
        yield _lines(console, total=total)
        return
    columns = (TextColumn("accepted"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:,.0f}/s"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("accepted", total=total, rate=0.0)
        started = time.monotonic()
        yield lambda accepted: bar.update(
            task, completed=accepted, rate=accepted / max(time.monotonic() - started, 0.001)
        )


def _lines(console: Console, *, total: int) -> Callable[[int], None]:
    shown = time.monotonic()

    def show(accepted: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= LOG_SECONDS:
            shown = time.monotonic()
            say(console, f"{accepted:,} of {total:,} accepted.")

    return show


def show_result(console: Console, result: LoadResult) -> None:
    """Show what was sent and how fast."""
    rows = [
        ("sent", f"{result.sent:,}"),
        ("accepted", f"{result.accepted:,}"),
        ("refused", f"{result.refused:,}"),
        ("without answer", f"{result.unanswered:,}"),
        ("requests retried", f"{result.retries:,}"),
        ("seconds", f"{result.seconds:.2f}"),
        ("events per second", f"{result.rate:,.0f}"),
        ("p50 / p95 / p99 ms", f"{result.p50_ms:.1f} / {result.p95_ms:.1f} / {result.p99_ms:.1f}"),
    ]
    table = Table("published", "")
    table.columns[1].justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_books(console: Console, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Show the counters of /stats before and after the run, and the change."""
    table = Table("books", "before", "after", "change")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in COUNTERS:
        table.add_row(name, f"{before[name]:,}", f"{after[name]:,}", f"{after[name] - before[name]:+,}")
    console.print(table)


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Show the verdict, most important line first."""
    for line in verdict.lines:
        say(console, line, style="green" if verdict.ok else "red")


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Write one line as it is: square brackets are text, and nothing is wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
