#!/usr/bin/env python
"""Django's command line for the aggregator; `manage.py help` lists every command."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aggregator_project.settings")
    if sys.argv[1:2] == ["up"]:
        from aggregator_project.stack import options_into_environment

        options_into_environment(sys.argv[2:])
    elif sys.argv[1:]:
        from aggregator_project.running import choose_service

        choose_service(sys.argv[1], sys.argv[2:])
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError

    try:
        execute_from_command_line(sys.argv)
    except DatabaseError as error:
        # One that is away, full, or may not be written is for the operator, who has no use for our stack.
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"The database cannot be used: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
