"""What schemathesis cannot do by itself; it loads this as SCHEMATHESIS_HOOKS says."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A body of one line."""
    return json.dumps(value).encode()
