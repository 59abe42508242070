"""Claims about dead letters: replayed or discarded, and the books exact all the while."""

from collections.abc import Callable
from io import StringIO
from unittest.mock import patch

import pytest
from django.core.management import CommandError, call_command

from events import store
from events.audit import audit
from events.dead_letters import discard, replay
from events.models import Batch
from events.stats import books
from tests.conftest import Publish, event

pytestmark = pytest.mark.django_db

Drain = Callable[[], store.Stored]


@pytest.fixture
def dead(publish: Publish, settings) -> list[int]:
    """Two dead letters of two events each."""
    settings.INBOX_MAX_ATTEMPTS = 1
    numbers = [publish([event(f"{n}-a"), event(f"{n}-b")]).json()["batch_id"] for n in range(2)]
    with patch("events.wire.decode_kept", side_effect=ValueError("torn")):
        store.store_chunk()
    assert books().failed == 4
    return numbers


def test_a_replayed_dead_letter_is_stored(dead: list[int], drain: Drain) -> None:
    assert replay([dead[0]]) == [dead[0]]
    assert (books().pending, books().failed) == (2, 2)
    drain()
    assert (books().unique, books().failed) == (2, 2)
    assert all(finding.holds for finding in audit())


def test_a_replayed_dead_letter_has_all_its_attempts_again(dead: list[int]) -> None:
    replay([dead[0]])
    assert Batch.objects.get(pk=dead[0]).attempts == 0


def test_replaying_rings(dead: list[int]) -> None:
    with patch("events.dead_letters.ring") as ring:
        replay([dead[0]])
        assert ring.call_count == 1
        replay([dead[0]])
        assert ring.call_count == 1


def test_replaying_all_leaves_out_what_was_discarded(dead: list[int]) -> None:
    discard([dead[0]])
    assert replay() == [dead[1]]


def test_a_discarded_batch_counts_as_discarded_and_is_not_tried_again(dead: list[int], drain: Drain) -> None:
    assert discard([dead[0]]) == [dead[0]]
    drain()
    assert (books().discarded, books().failed, books().received) == (2, 2, 4)
    assert all(finding.holds for finding in audit())


def test_a_discarded_batch_can_be_replayed_by_its_number(dead: list[int], drain: Drain) -> None:
    discard([dead[0]])
    assert replay([dead[0]]) == [dead[0]]
    drain()
    assert (books().unique, books().discarded) == (2, 0)


@pytest.mark.parametrize("settle", [replay, discard])
def test_pending_and_processed_batches_are_left_alone(
    settle: Callable[[list[int]], list[int]], publish: Publish, drain: Drain
) -> None:
    processed = publish(event("1")).json()["batch_id"]
    drain()
    pending = publish(event("2")).json()["batch_id"]
    assert settle([processed, pending, 999]) == []
    assert list(Batch.objects.order_by("pk").values_list("status", flat=True)) == ["processed", "pending"]


def test_the_command_replays_what_it_is_told_and_says_what_it_could_not(dead: list[int]) -> None:
    out = StringIO()
    with pytest.raises(CommandError, match="Neither a dead letter nor discarded: 999"):
        call_command("replay", str(dead[0]), "999", stdout=out)
    assert out.getvalue() == f"Pending again: {dead[0]}\n"
    call_command("replay", "--all", stdout=out)
    assert books().pending == 4


@pytest.mark.parametrize("command", ["replay", "discard"])
@pytest.mark.parametrize(
    ("arguments", "cause"),
    [([], "Give the numbers of the dead letters, or --all"), (["1", "--all"], "Give numbers or --all, not both")],
)
def test_the_commands_want_either_numbers_or_all(command: str, arguments: list[str], cause: str) -> None:
    with pytest.raises(CommandError, match=cause) as raised:
        call_command(command, *arguments)
    assert raised.value.returncode == 2


def test_the_command_discards(dead: list[int]) -> None:
    out = StringIO()
    call_command("discard", *map(str, dead), stdout=out)
    assert out.getvalue() == f"Discarded: {dead[0]}, {dead[1]}\n"
    assert books().discarded == 4
    with pytest.raises(CommandError, match="Not a dead letter: 999"):
        call_command("discard", "999", stdout=out)


def test_the_command_discards_all_dead_letters_and_nothing_else(dead: list[int], publish: Publish) -> None:
    waiting = publish(event("waits")).json()["batch_id"]
    out = StringIO()
    call_command("discard", "--all", stdout=out)
    assert out.getvalue() == f"Discarded: {dead[0]}, {dead[1]}\n"
    assert Batch.objects.get(pk=waiting).status == "pending"
    call_command("discard", "--all", stdout=out)
    assert out.getvalue().endswith("Discarded: none\n")
