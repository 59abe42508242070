"""bench/capacity.py, and that docs/scaling.md shows what it says."""

import sys

import pytest
from django.conf import settings

from bench import capacity


def test_ten_times_the_rate_needs_ten_times_the_cores_and_bytes() -> None:
    small, large = (capacity.needed(rate, batch=100) for rate in (1_000, 10_000))
    for name in ("web", "workers", "database", "log", "network", "disk_a_day"):
        assert getattr(large, name) == pytest.approx(10 * getattr(small, name))


def test_batches_are_cheaper_than_singles() -> None:
    assert capacity.needed(1_000, batch=100).web < capacity.needed(1_000, batch=1).web / 10


def test_a_log_that_one_primary_cannot_keep_up_with_takes_several() -> None:
    rate = 3.5 * capacity.LOG_BYTES / capacity.POSTGRESQL.log
    assert capacity.needed(rate, batch=10_000).primaries >= 4


def test_the_page_shows_the_tables_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["capacity"])
    capacity.main()
    page = (settings.BASE_DIR / "docs" / "scaling.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(("|", "SQLite")):
            assert line.rstrip() in page
