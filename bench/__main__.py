"""`python -m bench`: runs the rows, shows the table, and stops all it has started, also on Ctrl-C."""

import argparse
import os
import platform
import signal
import sqlite3
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
from rich.console import Console

#: What shells give for a program ended by Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130
#: Columns of the table where there is no terminal.
WIDTH = 140
#: Events in the large database, as it is and with --large.
LARGE = 1_000_000
LARGER = 5_000_000

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def main() -> int:
    options = _options()
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if options.report:
        return _report(options.report, console)
    # Also when `make` or a container is stopped, everything that was started is stopped and removed.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="aggregator-bench-") as folder:
            return _measure(options, Path(folder), console)
    except KeyboardInterrupt:
        console.print("Stopped. Nothing is left of it.")
        return INTERRUPTED


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the service end to end.")
    measured = ["singles", "batches-100", "batches-1000", "latency", "publisher", "replaced", "memory", "reads"]
    names = [*measured, "growth", "postgresql"]
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=names, help=f"rows to run: {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of one load (default 6)")
    parser.add_argument("--runs", type=int, default=3, help="loads of which the median is taken (default 3)")
    parser.add_argument(
        "--large", action="store_true", help=f"compare with {LARGER:,} stored events instead of {LARGE:,}"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep filled databases there for the next time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help=f"write such a result into docs/{PAGE.name}, and end"
    )
    return parser.parse_args()


def _report(file: Path, console: Console) -> int:
    from bench.figures import Result
    from bench.report import write_report

    write_report(msgspec.json.decode(file.read_bytes(), type=Result), PAGE)
    console.print(f"Written into {PAGE.name}.")
    return 0


def _measure(options: argparse.Namespace, folder: Path, console: Console) -> int:
    # The benchmark uses the service's own code to run it; none of its settings may reach a real service.
    os.environ["DJANGO_SETTINGS_MODULE"] = "aggregator_project.settings"
    os.environ["DATA_DIR"] = str(folder)
    for name in ("DATABASE_URL", "CELERY_BROKER_URL", "CACHE_URL"):
        os.environ.pop(name, None)
    from bench.figures import Result, Row
    from bench.load import Broken as BrokenLoad
    from bench.load import generator
    from bench.report import print_table
    from bench.rows import ROWS
    from bench.service import Broken
    from bench.workbench import Workbench

    started = time.monotonic()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = _machine()
    done: list[Row] = []
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    current = ""

    def say(text: str) -> None:
        progress.print(f"{time.monotonic() - started:5.0f} s  {current}: {text}", markup=False)

    bench = Workbench(
        folder=folder,
        seconds=options.seconds,
        runs=options.runs,
        large=LARGER if options.large else LARGE,
        keep=options.keep,
        say=say,
    )
    exit_code = 0
    with bench.stacks:
        for current in options.only or ROWS:
            try:
                done.append(ROWS[current](bench))
            except (Broken, BrokenLoad, httpx.HTTPError) as error:
                # The other rows are worth having all the same.
                console.print(f"{current}: {type(error).__name__}: {error}", style="red", markup=False)
                exit_code = 1
    result = Result(
        started=at,
        seconds=time.monotonic() - started,
        machine=machine,
        versions=_versions(),
        options={
            "load generator": generator(),
            "seconds of a load, loads": f"{options.seconds:g}, {options.runs}",
        },
        rows=done,
    )
    print_table(result, console)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    return exit_code


def _machine() -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {psutil.virtual_memory().total / 1e9:.0f} GB of memory",
        "system": platform.platform(aliased=True),
        "load before the run": f"{psutil.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _versions() -> dict[str, str]:
    packages = ("Django", "djangorestframework", "celery", "gunicorn", "redis", "msgspec")
    return {
        "Python, SQLite": f"{platform.python_version()}, {sqlite3.sqlite_version}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
    }


if __name__ == "__main__":
    sys.exit(main())
