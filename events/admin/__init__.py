"""The admin: what operators look at. Reads only, apart from dead letters, API keys and erasing."""

from events.admin import accounts, api_keys, batches, duplicates, erasures, events, site, totals

__all__ = ["accounts", "api_keys", "batches", "duplicates", "erasures", "events", "site", "totals"]
