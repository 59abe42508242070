"""Remembers which batches each process is storing, so that after its death its successor knows what may have killed it.

A note is a line in a file of the process in DATA_DIR/run/in-flight, written before the work begins and outside its
transaction. It costs microseconds, no statement and no wait for the disk: the kernel keeps it when the process is
killed, or the container that it runs in. The process holds a lock on its file (flock), which the kernel frees however
the process ends; that tells a death from a process that is slow, or stopped.
"""

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Note:
    """What a process was storing when it died.

    Attributes:
        batches: their numbers. Some may be stored: what was noted stays until the next note.
        alone: whether it was one batch that was stored by itself because it was suspected.
    """

    batches: list[int]
    alone: bool


class _File:
    """The file of this process; a forked process makes one of its own.

    Attributes:
        length: bytes of the last note, all of which the next one has to cover.
        complained: whether the log says already that nothing can be noted.
    """

    process = 0
    descriptor = -1
    length = 0
    complained = False


def folder() -> Path:
    """Where the files are."""
    path: Path = settings.DATA_DIR / "run" / "in-flight"
    return path


def note(batches: Sequence[int], *, alone: bool = False) -> None:
    """Writes down what this process is about to store. Never raises: without a note, a death is not counted."""
    try:
        if _File.process != os.getpid() or _File.descriptor < 0:
            _open()
        line = json.dumps([list(batches), alone]).encode()
        # In one write, with spaces over what is left of a longer note, so that a note is never half there.
        os.pwrite(_File.descriptor, line.ljust(_File.length), 0)
        _File.length = len(line)
    except OSError as error:
        if not _File.complained:
            log.warning("what is being stored cannot be noted in %s: %s", folder(), error)
        _File.complained = True


@contextmanager
def alone(batch: int) -> Iterator[None]:
    """Notes that one batch is stored by itself, until it is stored or has failed."""
    note([batch], alone=True)
    try:
        yield
    finally:
        note([])


def left_by_the_dead() -> Iterator[Note]:
    """What processes were storing that have died, each once; those that were storing a single suspect come first.

    A note is forgotten when the next one is asked for. If this process dies before, another one gets it.
    """
    found: list[tuple[Note, Path, int]] = []
    try:
        for path in folder().glob("[!.]*"):
            if (descriptor := _taken_over(path)) is not None:
                found.append((_read(path), path, descriptor))
        for left, path, _ in sorted(found, key=lambda one: not one[0].alone):
            yield left
            path.unlink(missing_ok=True)
    finally:
        for _, _, descriptor in found:
            os.close(descriptor)


def _open() -> None:
    if _File.descriptor >= 0:
        # Of the process that this one was forked from.
        os.close(_File.descriptor)
    _File.process, _File.descriptor, _File.length = os.getpid(), -1, 0
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    # Hidden from others until it is locked: they would take it for that of a process that has died.
    descriptor, name = tempfile.mkstemp(prefix=".", dir=folder())
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path = Path(name)
    path.rename(path.with_name(path.name.removeprefix(".")))
    _File.descriptor = descriptor


def _taken_over(path: Path) -> int | None:
    """The opened and locked file, if its process has died."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


def _read(path: Path) -> Note:
    try:
        batches, alone = json.loads(path.read_bytes())
        return Note(batches, alone)
    except (OSError, ValueError):
        # Nothing was noted yet, or a power failure took it.
        return Note([], alone=False)
