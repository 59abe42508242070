"""The events app."""

from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "events"
    verbose_name = "Event aggregator"

    def ready(self) -> None:
        from aggregator_project import reporting
        from events import checks, memory  # noqa: F401  (checks registers the system checks)

        memory.return_large_blocks()
        reporting.start()
