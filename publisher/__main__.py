"""`python -m publisher`: load against a running service, from a shell or from Compose. `--help` lists the options."""

import argparse
import os
import signal
import sys
from typing import NoReturn

from rich.console import Console

from publisher.command import publish
from publisher.options import add_options


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse says it below all of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message} ({self.prog} --help says more)\n")


def main() -> int:
    """Read the options and publish. Returns the exit code."""
    parser = Parser(
        prog="python -m publisher",
        usage="python -m publisher [options]",
        description="Publish generated events to a running service, and check that it counts all of them.",
    )
    add_options(parser, environ=os.environ)
    options = parser.parse_args()
    # `docker compose stop` sends SIGTERM, which process 1 of a container ignores unless it says otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return publish(options, console=Console())


if __name__ == "__main__":
    sys.exit(main())
