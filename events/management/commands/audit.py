"""`manage.py audit`: proves the books, one line an invariant."""

import sys
from typing import Any

from events.audit import audit
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Count all rows again and check that the counters are right. The exit code is 1 if they are not."

    def handle(self, *args: Any, **options: Any) -> None:
        findings = audit()
        for finding in findings:
            word, style = ("ok", self.style.SUCCESS) if finding.holds else ("FAILED", self.style.ERROR)
            sides = f"{finding.left:,} {'=' if finding.holds else '≠'} {finding.right:,}"
            self.stdout.write(f"{style(f'{word:<6}')}  {finding.claim}: {sides}")
        failed = sum(not finding.holds for finding in findings)
        if failed:
            self.stdout.write(self.style.ERROR(f"The books are wrong: {failed} of {len(findings)} claims failed."))
            sys.exit(1)
        self.stdout.write(f"The books are right: all {len(findings)} claims hold.")
