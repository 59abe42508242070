"""Says at start what is wrong with the settings, one line a mistake, and how to mend it."""

import os
import sys
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register, run_checks

from aggregator_project import private, reporting
from aggregator_project.doors import open_doors

#: The tag of what has to be right for a part to start. Django's own checks are about code; `manage.py check` runs them.
OURS = "events"


@register(OURS)
def check_environment(**_: Any) -> list[CheckMessage]:
    """Every environment variable holds what it should."""
    return [Error(mistake, id="events.E001") for mistake in settings.ENVIRONMENT.mistakes]


@register(OURS)
def check_data_folder(**_: Any) -> list[CheckMessage]:
    """What has to be written can be written."""
    folder = settings.DATA_DIR
    # Made by whoever starts the service; a command that only looks leaves nothing behind.
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not there.is_dir():
        text = f"DATA_DIR {folder} cannot be made: {there} is no folder"
        return [Error(text, hint="Set DATA_DIR.", id="events.E002")]
    if there != folder:
        if os.access(there, os.W_OK | os.X_OK):
            return []
        text = f"DATA_DIR {folder} cannot be made by user {os.getuid()}"
        return [Error(text, hint="Give that user the folder, or set DATA_DIR to another one.", id="events.E002")]
    # Also what is in it: whoever ran a command there as another user owns some of it now.
    for path in (folder, *private.paths(folder)):
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            name = f"DATA_DIR {folder}" if path == folder else f"{path} in DATA_DIR"
            return [
                Error(
                    f"{name} cannot be written by user {os.getuid()}",
                    hint="Give that user the folder and all that is in it, or set DATA_DIR to another one.",
                    id="events.E002",
                )
            ]
    return []


@register(OURS)
def check_reporting(**_: Any) -> list[CheckMessage]:
    """What errors and traces need is installed."""
    return [Error(mistake, id="events.E004") for mistake in reporting.missing()]


@register(Tags.security, deploy=True)
def check_doors(**_: Any) -> list[CheckMessage]:
    """No door stands open to strangers. Asked for with --deploy: on one's own network it may be meant so."""
    return [Error(door, id="events.E003") for door in open_doors()]


def exit_on_errors() -> None:
    """Ends the process with exit code 2 and a line for each mistake, or else makes the data folder; for starts.

    Only what is ours: Django's checks load every page of the admin, which takes a worker a second and 23 MB.

    Raises:
        SystemExit: a check failed.
    """
    errors = [message for message in run_checks(tags=[OURS]) if message.is_serious()]
    for error in errors:
        sys.stderr.write(f"{error.msg}{' ' + error.hint if error.hint else ''}\n")
    if errors:
        raise SystemExit(2)
    settings.DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
