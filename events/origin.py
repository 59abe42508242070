"""Which request what is being done comes from. Log lines carry it (logs.py), and so do batches and tasks."""

import re
import secrets
from contextvars import ContextVar

#: What an X-Request-ID may be: room for a UUID or a traceparent, and nothing that a log line could trip over.
_VALID = re.compile(r"[A-Za-z0-9._:=+/-]{1,64}")

#: The id of the request in hand, or the empty text.
request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id_from(given: str) -> str:
    """The id a caller gave its request where it can be used, else a new one."""
    return given if _VALID.fullmatch(given) else secrets.token_hex(8)
