"""Publishes events to the aggregator: `Client` for programs, `python -m publisher` for load. Needs no Django."""

from publisher.client import Client, PublishRefused, Receipt, UnexpectedAnswer
from publisher.retry import ServiceUnavailable

__all__ = ["Client", "PublishRefused", "Receipt", "ServiceUnavailable", "UnexpectedAnswer"]
