"""The way of an event: wire.py → inbox.py → tasks.py → store.py → stats.py."""
