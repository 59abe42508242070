"""How log lines look: one line an event of the service's life, for people in a terminal, as JSON elsewhere."""

import logging
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from events.origin import request_id

#: What a terminal obeys instead of showing it: control characters, and those that turn the direction of text. Written
#: as escapes, so that what a stranger sent cannot look like a line of ours. JSON does so by itself.
_DIRECTIONS = (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_OBEYED = {
    code: chr(code).encode("unicode_escape").decode() for code in (*range(0x20), *range(0x7F, 0xA0), *_DIRECTIONS)
}

#: Seconds between two lines of one kind that strangers can cause as often as they like.
STRANGERS_PAUSE_SECONDS = 60.0
#: Characters of such a line that are written: it repeats what a stranger sent.
STRANGERS_LINE_LENGTH = 200


class OnceInAWhile(logging.Filter):
    """Lets a line of each logger through once a minute, as a warning without its traceback.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self.next_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if self.clock() < self.next_at.get(record.name, 0.0):
            return False
        self.next_at[record.name] = self.clock() + STRANGERS_PAUSE_SECONDS
        record.msg, record.args = record.getMessage()[:STRANGERS_LINE_LENGTH], ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
        # Django adds the request, and with it the path.
        vars(record).pop("request", None)
        return True


def logging_config(*, form: str, level: str, part: str) -> dict[str, Any]:
    """Django's LOGGING for one part of the service.

    Args:
        form: "console", "json", or "auto" for console in a terminal and JSON elsewhere.
        level: the lowest level that is written, as logging names it.
        part: the part this process is; stands in every line.
    """

    def name_part(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["part"] = part
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _name_request,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_part,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    # `manage.py up` passes on what its parts write, so they do not see its terminal. See https://force-color.org
    colors = sys.stderr.isatty() or bool(os.environ.get("FORCE_COLOR"))
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        rendering += [
            _part_first,
            _harmless,
            structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=_traceback),
        ]
    else:
        # Without local variables: they hold what was published, and keys.
        tracebacks = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        rendering += [tracebacks, structlog.processors.JSONRenderer()]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder()],
                "processors": rendering,
            }
        },
        "filters": {
            "once_in_a_while": {"()": OnceInAWhile},
            "with_traceback": {"()": "django.utils.log.CallbackFilter", "callback": lambda record: record.exc_info},
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
            "strangers": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["once_in_a_while"]},
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's own handlers would print a line a second time, and mail admins that nobody configured.
            "django": {"handlers": [], "propagate": True, "level": level},
            "django.server": {"handlers": [], "propagate": True, "level": level},
            # What failed by mistake, with its traceback; requests.py has a line for whatever failed.
            "django.request": {"handlers": [], "propagate": True, "level": "ERROR", "filters": ["with_traceback"]},
            # Requests that Django will not work on: a host name that is not ours, for one.
            "django.security": {"handlers": ["strangers"], "propagate": False, "level": level},
            # A line a task says nothing that the task does not say itself.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
            "celery.worker.consumer.connection": {"level": "WARNING"},
            # Sweeps that beat sent while no worker was there; kombu's returns of what was prefetched; connections.
            "celery.worker.request": {"level": "WARNING"},
            "kombu": {"level": "WARNING"},
            # Its own lines on a start are six a process; aggregator_project/gunicorn.py says that it is ready.
            "gunicorn.error": {"handlers": ["stderr"], "propagate": False, "level": "WARNING"},
            "flower.command": {"level": "WARNING"},
            # Flower asks before the worker is there, and asks again.
            "flower.inspector": {"level": "ERROR"},
            "httpx": {"level": "WARNING"},
            # A traceback a probe; events/health.py says it once.
            "health_check": {"level": "CRITICAL"},
            # Wrong passwords are warnings.
            "axes": {"level": "WARNING"},
        },
    }


def _name_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The request in hand, or the one that rang for the task in hand."""
    if this := request_id.get():
        event.setdefault("request_id", this)
    return event


def _part_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["event"] = f"{event.pop('part'):<7} {event['event']}"
    return event


def _harmless(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if name != "exc_info" and not isinstance(value, int | float):
            event[name] = str(value).translate(_OBEYED)
    return event


def _traceback(output: TextIO, failure: ExcInfo) -> None:
    """Plain, since the usual one shows local variables, which hold what was published, and keys.

    Indented, because the text of an exception may have lines that look like ours.
    """
    kept = {code: escape for code, escape in _OBEYED.items() if chr(code) not in "\n\t"}
    lines = "".join(traceback.format_exception(*failure)).rstrip("\n").translate(kept)
    output.write("\n" + textwrap.indent(lines, "    "))
