"""What the service keeps in DATA_DIR is for its owner alone: payloads, sessions, the secret key."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: What is the service's in DATA_DIR. Not everything that may lie there: a volume has a folder lost+found.
NAMES = ("aggregator.sqlite3*", "secret-key", "beat-schedule*", "broker*", "run", "run/*")


def paths(folder: Path) -> Iterator[Path]:
    """Files and folders of the service in its DATA_DIR that are there; not what is in its subfolders, but for run/."""
    for name in NAMES:
        with suppress(OSError):
            yield from sorted(folder.glob(name))


def tighten(folder: Path) -> None:
    """Takes from group and others what earlier versions of the service gave them. DATA_DIR itself stays as it is.

    New files and folders need none of this: settings.py sets the umask.
    """
    for path in paths(folder):
        with suppress(OSError):  # another user's
            mode = path.lstat().st_mode
            if mode & 0o077 and not path.is_symlink():
                path.chmod(mode & 0o700)
