"""The benchmark runs, leaves nothing behind, and its pages and files are what the documents say they are."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from django.conf import settings

from bench.figures import Figure, Result, Row
from bench.fill import fill
from bench.report import BEGIN, END, write_report
from bench.service import environment, migrate

pytestmark = pytest.mark.xdist_group("stack")


def bench(temporary: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=settings.BASE_DIR,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_a_row_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = bench(temporary, "--only", "batches-100", "--seconds", "1", "--runs", "1", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = msgspec.json.decode(file.read_bytes(), type=Result).rows
    figures = {figure.name: figure.value for figure in row.figures}
    assert figures["stored"] > 0
    assert figures["executemany INSERT OR IGNORE"] > 0
    assert "Batches" not in done.stderr
    assert "executemany" in done.stdout
    assert list(temporary.iterdir()) == []


def test_a_row_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "everything")
    assert done.returncode == 2
    assert "everything" in done.stderr
    assert "singles" in done.stderr


def test_a_filled_database_has_books_that_hold(tmp_path: Path) -> None:
    variables = environment(tmp_path, settings_module="aggregator_project.settings")
    migrate(variables)
    database = tmp_path / "data" / "aggregator.sqlite3"
    fill(database, 800)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM events_event").fetchone() == (800,)
    audit = subprocess.run(
        [sys.executable, "manage.py", "audit"],
        cwd=settings.BASE_DIR,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_report_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    row = Row("singles", "Singles", [Figure("stored", "events/s", [1_000.0, 3_000.0, 2_500.0], 2_000)], ["A note."])
    write_report(Result("2026-01-01T00:00:00", 60.0, {}, {}, {}, [row]), page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| stored | 2,500 events/s | ≥ 2,000 events/s | ok |" in text


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("rate", "", [0.3], 0.4), False),
        (Figure("rate", "", [0.4], 0.4), True),
        (Figure("wait", "ms", [60.0, 10.0, 20.0], 50, "at most"), True),
        (Figure("wait", "ms", [60.0], 50, "at most"), False),
        (Figure("rate", "", [0.3]), None),
    ],
)
def test_a_figure_is_judged_by_its_median(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


def test_the_page_about_performance_has_the_markers() -> None:
    text = (settings.BASE_DIR / "docs" / "performance.md").read_text()
    assert text.index(BEGIN) < text.index(END)
