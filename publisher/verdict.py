"""Judges from the service's books before and after a run whether everything that was accepted has been accounted for.

The books are shared: others may publish at the same time, and then more has changed than this run can explain. That is
said, and only what cannot be explained by others counts as wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from publisher.load import LoadResult

#: The counters of /stats that change, in the order an event can pass through them.
COUNTERS = ("received", "unique_processed", "duplicate_dropped", "pending", "failed", "discarded")


@dataclass(frozen=True)
class Verdict:
    """`ok` is false if events went missing or were stored twice; `lines` say what was found, most important first."""

    ok: bool
    lines: list[str]


def judge(before: Mapping[str, Any], after: Mapping[str, Any], result: LoadResult) -> Verdict:
    """Compare the change between two answers of /stats with what a run got accepted in between.

    `after` should have been read when the run's events were processed; what is still pending then counts as wrong.
    """
    change = {name: after[name] - before[name] for name in COUNTERS}
    accepted = result.accepted
    if not accepted:
        return Verdict(False, ["Nothing was accepted."])
    unexplained = change["received"] - accepted
    if unexplained < 0:
        return Verdict(False, [f"{-unexplained:,} of {accepted:,} accepted events are missing from the books."])

    wrong = []
    settled = change["unique_processed"] + change["duplicate_dropped"]
    if settled < accepted:
        wrong.append(
            f"{accepted - settled:,} accepted events are neither stored nor dropped: pending {change['pending']:+,}, "
            f"failed {change['failed']:+,}, discarded {change['discarded']:+,}."
        )

    alone = unexplained == 0
    first_run = before["received"] == 0 and before["unique_processed"] == 0
    complete = accepted == result.unique_expected + result.duplicates_expected
    new = change["unique_processed"]
    if alone and new > result.unique_expected:
        wrong.append(f"{new:,} events were stored as new, but only {result.unique_expected:,} were different.")
    if alone and first_run and complete and not wrong and new < result.unique_expected:
        wrong.append(f"The service was empty, yet only {new:,} of {result.unique_expected:,} different events are new.")
    if wrong:
        return Verdict(False, wrong)

    lines = [f"Nothing is missing: {accepted:,} accepted = {new:,} new + {change['duplicate_dropped']:,} duplicates."]
    if not alone:
        lines = [
            f"Nothing is missing: {accepted:,} accepted, and the books grew by {change['received']:,}.",
            f"The other {unexplained:,} came from {_elsewhere(result)}.",
        ]
    elif new < result.unique_expected and complete:
        known = result.unique_expected - new
        lines.append(f"{known:,} events were already there, as after an earlier run of this seed.")
    return Verdict(True, lines)


def _elsewhere(result: LoadResult) -> str:
    if result.unanswered:
        return "other publishers, or from requests that were accepted although their answer got lost"
    return "other publishers"
