"""The admin: what operators look at. Reads only, apart from replaying and discarding dead letters."""

from events.admin import accounts, api_keys, batches, duplicates, events, site, totals

__all__ = ["accounts", "api_keys", "batches", "duplicates", "events", "site", "totals"]
