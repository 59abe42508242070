"""What schemathesis cannot do by itself; it loads this as SCHEMATHESIS_HOOKS says."""

import json
from datetime import datetime
from typing import Any

import schemathesis
from hypothesis import strategies

# By its format, a moment may also lie outside of the years 1 to 9999 in UTC: 0001-01-01T00:00:00+03:00. That is a 400.
schemathesis.openapi.format(
    "date-time",
    strategies.builds(
        "{:%Y-%m-%dT%H:%M:%S}{}".format,
        # strftime writes years below 1000 with fewer than four digits.
        strategies.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 30)),
        strategies.sampled_from(["Z", ".5Z", ".123456789+05:30", "-08:00"]),
    ),
)


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A body of one line."""
    return json.dumps(value).encode()
