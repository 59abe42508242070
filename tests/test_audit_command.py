"""`manage.py audit`: what people see of the books."""

from io import StringIO

import pytest
from django.core.management import call_command

from events.audit import Finding
from events.management.commands import audit as command
from events.models import TopicTotal
from tests.conftest import event


def audit() -> tuple[int, str]:
    """The exit code and what was written."""
    written = StringIO()
    try:
        call_command("audit", stdout=written, no_color=True)
    except SystemExit as ended:
        return int(ended.code or 0), written.getvalue()
    return 0, written.getvalue()


@pytest.mark.django_db
def test_right_books_are_shown_with_both_sides(publish, drain) -> None:
    publish([event("1"), event("1"), event("2")])
    drain()
    code, written = audit()
    assert code == 0
    assert "ok      unique = stored events: 2 = 2\n" in written
    assert "FAILED" not in written


@pytest.mark.django_db
def test_wrong_books_are_an_exit_code_and_a_line(publish, drain) -> None:
    publish([event("1"), event("2")])
    drain()
    TopicTotal.objects.update(unique=3)
    code, written = audit()
    assert code == 1
    assert "FAILED  unique = stored events: 3 ≠ 2\n" in written
    assert "The books are wrong: " in written


def test_one_claim_that_fails_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "audit", lambda: [Finding("this", 1, 1), Finding("that", 1_000, 1)])
    code, written = audit()
    assert code == 1
    assert written == "ok      this: 1 = 1\nFAILED  that: 1,000 ≠ 1\nThe books are wrong: 1 of 2 claims failed.\n"
