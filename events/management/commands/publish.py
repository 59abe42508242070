"""`manage.py publish`: the load generator of the publisher package, with the same options as `python -m publisher`."""

import os
import sys
from argparse import Namespace
from typing import IO, Any, cast

from django.core.management.base import CommandParser
from rich.console import Console

from events.management.base import BaseCommand
from publisher.command import publish
from publisher.options import add_options


class Command(BaseCommand):
    help = "Publish generated events to a running service, and check that it counts all of them."
    # It speaks HTTP to a service that may be anywhere; this machine's settings and database do not matter.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        add_options(parser, environ=os.environ)

    def handle(self, *args: Any, **options: Any) -> None:
        # Django would end everything that is written with a line break, also the parts of a progress bar.
        self.stdout.ending = ""
        code = publish(Namespace(**options), console=Console(file=cast("IO[str]", self.stdout)))
        if code:
            sys.exit(code)
