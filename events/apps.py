"""The events app."""

from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "events"
    verbose_name = "Event aggregator"

    def ready(self) -> None:
        from aggregator_project import reporting
        from events import checks  # noqa: F401  (registers the system checks)

        reporting.start()
