"""The service's settings for tests: a data folder of their own, and no broker, so that each test says when to drain."""

import atexit
import os
import shutil
import tempfile

for _name in ("DATABASE_URL", "CELERY_BROKER_URL", "CACHE_URL"):
    os.environ.pop(_name, None)
_data = tempfile.mkdtemp(prefix="aggregator-tests-")
atexit.register(shutil.rmtree, _data, ignore_errors=True)
os.environ["DATA_DIR"] = _data
# One database that TEST_DATABASE_URL may name: the same tests run on PostgreSQL.
if "TEST_DATABASE_URL" in os.environ:
    os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]

from aggregator_project.settings import *  # noqa: E402, F403

CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
CELERY_BROKER_URL = "memory://"
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, object] = {}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ALLOWED_HOSTS = ["testserver", "localhost"]
# client.login() has no request whose address could be counted; test_doors.py turns it on.
AXES_ENABLED = False
