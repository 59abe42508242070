"""`manage.py prepare`: what must be done once before the parts start. `up` does it too; Compose runs it on its own."""

import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError, OutputWrapper
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from aggregator_project.private import tighten
from events.checks import exit_on_errors
from events.management.base import BaseCommand


class Command(BaseCommand):
    help = "Migrate the database. On the first start, create the user `admin` and print its password."

    # exit_on_errors() says the same in a line a mistake.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        exit_on_errors()
        prepare_database(self.stdout)
        if password := create_admin():
            self.stdout.write(f"Log in to the admin as admin with {password}\nIt is shown this once only.")


def prepare_database(output: OutputWrapper) -> None:
    """Bring the tables up to date, saying so where there is something to do.

    Raises:
        CommandError: the database cannot be used.
    """
    try:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            output.write("Preparing the database.")
            output.flush()
            call_command("migrate", verbosity=0, interactive=False)
        tighten(settings.DATA_DIR)
    except DatabaseError as error:
        raise CommandError(f"The database {connection.settings_dict['NAME']} cannot be used: {error}") from None


def create_admin() -> str | None:
    """Make the user `admin` where nobody can log in to the admin yet. Returns the password, which is kept nowhere."""
    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return None
    password = secrets.token_urlsafe(12)
    users.create_superuser("admin", password=password)
    return password
