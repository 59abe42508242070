"""Which doors stand open to strangers: for the start-up log, the dashboard and `manage.py check --deploy`."""

from django.conf import settings

from aggregator_project.stack import is_loopback


def open_doors() -> list[str]:
    """One sentence a door that others than this machine can reach and that no key or password closes.

    Whether others can reach it is what PUBLISH_ON says, or BIND: a container cannot see what its host lets in.
    """
    if is_loopback(settings.PUBLISH_ON):
        return []
    where = settings.PUBLISH_ON
    found = []
    if not settings.REQUIRE_API_KEY:
        found.append(
            f"The API listens on {where} without keys: anyone who can reach it can publish and read events. "
            "Set REQUIRE_API_KEY=true, or listen on 127.0.0.1."
        )
    if not settings.NO_FLOWER and not settings.FLOWER_BASIC_AUTH:
        found.append(
            f"Flower listens on {where} without a password: anyone who can reach it can see and stop the worker. "
            "Set FLOWER_BASIC_AUTH=user:password, or NO_FLOWER=true."
        )
    return found
