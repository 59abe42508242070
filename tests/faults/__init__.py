"""Breaks the service on purpose: `python -m tests.faults` for minutes on end, the tests here for seconds."""
