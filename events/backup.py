"""Copies the SQLite database into one file while the service runs: all of it as it was at one instant."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from django.db import connection


class NotCopied(Exception):
    """There is no copy; the text says why."""


def back_up(file: Path) -> int:
    """Write the database to a file, as it is now; publishing and storing go on meanwhile.

    Pending batches and dead letters are in it, and the books add up: it is one snapshot, taken by SQLite's online
    backup (https://sqlite.org/backup.html) in one step. Not a copy of the file: what was committed last is in the log
    beside it.

    Args:
        file: where to. It must not exist yet, and is there only once it is complete, checked and on disk.

    Returns:
        Its size in bytes.

    Raises:
        NotCopied: the database is not SQLite, the file exists, or it cannot be written.
    """
    if connection.vendor != "sqlite":
        raise NotCopied("This is for SQLite. PostgreSQL has pg_dump; docs/operations.md shows how.")
    if file.exists():
        raise NotCopied(f"{file} exists. Name a new file, or remove that one.")
    partial = file.with_name(f"{file.name}.part")
    connection.ensure_connection()
    try:
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as copy:
            # In one step: one read transaction, which in WAL mode keeps no writer waiting. Page by page it would begin
            # anew with each publish.
            connection.connection.backup(copy)
            # Of one file, so that nothing beside it can get lost. The service changes it back.
            copy.execute("PRAGMA journal_mode=DELETE")
            [(finding, *_), *_] = copy.execute("PRAGMA quick_check").fetchall()
        if finding != "ok":
            raise NotCopied(f"The copy is damaged, and so the database may be: {finding}")
        _sync(partial)
        # Not rename(), which would replace what came there meanwhile.
        os.link(partial, file)
        _sync(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise NotCopied(f"{file} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return file.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
