"""Every setting of the service, each from one environment variable. README.md has the same list for operators."""

import os
import secrets
import ssl
import tempfile
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from celery.schedules import crontab
from django.templatetags.static import static

from aggregator_project.environment import Environment
from aggregator_project.logs import logging_config
from aggregator_project.running import BASE_DIR as BASE_DIR
from aggregator_project.running import DATABASE_FILE, DEFAULT_DATA_DIR
from aggregator_project.schedules import Every

ENVIRONMENT = environment = Environment()

# What a process writes is for its owner: payloads are in the database, in backups and in the broker's files. Every part
# and every command loads this module first.
os.umask(0o077)

# --- Where things live ------------------------------------------------------------------------------------------------

#: Folder for everything this installation writes: SQLite file, embedded broker, generated secret key.
DATA_DIR = Path(environment.text("DATA_DIR", str(DEFAULT_DATA_DIR))).absolute()
if "\n" in str(DATA_DIR) or "\r" in str(DATA_DIR):
    # supervisord's configuration has one setting a line.
    environment.mistakes.append("DATA_DIR has a line break in it; name a folder without one")

#: SQLite in DATA_DIR when unset; PostgreSQL with postgres://user:password@host:5432/name. What libpq knows can follow:
#: ?sslmode=verify-full&sslrootcert=/path/ca.pem
DATABASES: dict[str, dict[str, Any]] = {
    "default": environment.database(
        "DATABASE_URL",
        # Not as a URL: in one, a #, a ? or a %41 of the path would mean something else.
        {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATA_DIR / DATABASE_FILE)},
        ["sqlite", "postgres", "postgresql"],
    )
}

#: FULL: a 202 survives power loss. NORMAL: it survives a crash of the service; about twice as many single posts.
SQLITE_SYNCHRONOUS = environment.choice("SQLITE_SYNCHRONOUS", "FULL", ["FULL", "NORMAL"])

#: Seconds a statement waits for SQLite's one writer lock before the publisher gets a 503.
SQLITE_BUSY_SECONDS = environment.whole("SQLITE_BUSY_SECONDS", 5, minimum=1, maximum=60)

# sun_path holds 104 bytes on macOS and 108 on Linux, and the path stands in a URL, which kombu unquotes and Flower does
# not: a DATA_DIR that is deep, or has a blank or a # in it, gets a short and plain name elsewhere instead. Not where
# TMPDIR says, which can be as deep, and need not be the same for all who look for the broker.
_socket = DATA_DIR / "broker.sock"
if len(os.fsencode(_socket)) > 100 or quote(os.fsencode(_socket)) != str(_socket):
    _socket = Path("/tmp") / f"aggregator-{sha256(os.fsencode(DATA_DIR)).hexdigest()[:16]}.sock"  # noqa: S108

#: Unix socket of the broker that `manage.py up` starts when CELERY_BROKER_URL is unset.
EMBEDDED_BROKER_SOCKET = str(_socket)

#: Redis (redis://, rediss://, redis+socket://, sentinel://host:26379;sentinel://host2:26379) or RabbitMQ (amqp://,
#: amqps://).
CELERY_BROKER_URL = environment.url(
    "CELERY_BROKER_URL",
    f"redis+socket://{EMBEDDED_BROKER_SOCKET}",
    ["redis", "rediss", "redis+socket", "sentinel", "amqp", "amqps"],
)
EMBEDDED_BROKER = not environment.text("CELERY_BROKER_URL")

#: Name of the Redis that the sentinels watch, and the sentinels' own password.
SENTINEL_MASTER = environment.text("SENTINEL_MASTER", "mymaster")
SENTINEL_PASSWORD = environment.text("SENTINEL_PASSWORD")

#: Holds the doorbell. The broker's Redis when unset, the process's own memory when the broker is RabbitMQ.
CACHE_URL = environment.url(
    "CACHE_URL",
    CELERY_BROKER_URL.replace("redis+socket://", "unix://")
    if CELERY_BROKER_URL.startswith(("redis", "sentinel"))
    else "locmem://",
    ["redis", "rediss", "unix", "sentinel", "locmem"],
)
#: Whether all processes hear one doorbell, or each has its own.
SHARED_DOORBELL = not CACHE_URL.startswith("locmem")

# --- The service ------------------------------------------------------------------------------------------------------

#: Address and port the web part listens on, and Flower's port on the same address.
BIND = environment.text("BIND", "127.0.0.1")
PORT = environment.whole("PORT", 8080, minimum=1, maximum=65535)
FLOWER_PORT = environment.whole("FLOWER_PORT", 5555, minimum=1, maximum=65535)

#: Leaves Flower out of `manage.py up`.
NO_FLOWER = environment.flag("NO_FLOWER", False)

#: gunicorn's processes, and threads of each. Threads that wait share a commit: 8 took a tenth more single posts than 4,
#: and more than 8 nothing further (2 cores, 16 connections).
WEB_PROCESSES = environment.whole("WEB_PROCESSES", 2, minimum=1)
WEB_THREADS = environment.whole("WEB_THREADS", 8, minimum=1)

#: Seconds an idle connection stays open: longer than load balancers keep theirs (60 to 90 s), which send a request
#: into a connection that is just being closed, and answer 502. It costs a place, no thread.
KEEPALIVE_SECONDS = environment.whole("KEEPALIVE_SECONDS", 100, minimum=1, maximum=3600)

#: Drains at once. SQLite has one writer, so more than one only helps on PostgreSQL.
WORKER_CONCURRENCY = environment.whole("WORKER_CONCURRENCY", 1, minimum=1)

#: Most events in one publish, and most bytes in its body; beyond either the answer is 413.
PUBLISH_MAX_EVENTS = environment.whole("PUBLISH_MAX_EVENTS", 10_000, minimum=1)
PUBLISH_MAX_BYTES = environment.whole("PUBLISH_MAX_BYTES", 10 * 1024 * 1024, minimum=1)

#: Most events pending at once; beyond it a publish gets 503 with Retry-After. 0 is no limit.
INBOX_MAX_EVENTS = environment.whole("INBOX_MAX_EVENTS", 1_000_000)

#: How often a batch that fails is tried before it becomes a dead letter.
INBOX_MAX_ATTEMPTS = environment.whole("INBOX_MAX_ATTEMPTS", 5, minimum=1)

# --- Retention --------------------------------------------------------------------------------------------------------

#: Days after which an event is no longer listed and its payload goes; its key stays. 0 is never.
EVENT_RETENTION_DAYS = environment.whole("EVENT_RETENTION_DAYS", 0, maximum=36_500)

#: Days after which its key goes too, so that a duplicate that comes later is a new event. 0 is never.
DEDUP_RETENTION_DAYS = environment.whole("DEDUP_RETENTION_DAYS", 0, maximum=36_500)
if DEDUP_RETENTION_DAYS and not 0 < EVENT_RETENTION_DAYS <= DEDUP_RETENTION_DAYS:
    environment.mistakes.append(
        f"DEDUP_RETENTION_DAYS is {DEDUP_RETENTION_DAYS} and EVENT_RETENTION_DAYS is {EVENT_RETENTION_DAYS}; "
        "a key goes with its event or later, so EVENT_RETENTION_DAYS must be from 1 to DEDUP_RETENTION_DAYS"
    )

#: Days a processed batch stays: its receipt, and its idempotency key. 0 is for ever.
BATCH_RETENTION_DAYS = environment.whole("BATCH_RETENTION_DAYS", 30, maximum=36_500)

#: Days a dropped duplicate stays in the log; 0 turns the log off.
DUPLICATE_LOG_DAYS = environment.whole("DUPLICATE_LOG_DAYS", 7, maximum=36_500)

# --- Logs -------------------------------------------------------------------------------------------------------------

#: console: coloured lines; json: one object a line; auto: console in a terminal, json otherwise.
LOG_FORMAT = environment.choice("LOG_FORMAT", "auto", ["auto", "console", "json"])
LOG_LEVEL = environment.choice("LOG_LEVEL", "INFO", ["DEBUG", "INFO", "WARNING", "ERROR"])

#: A line for every request. Otherwise only for those that failed, took a second or longer, or were a refused publish.
LOG_REQUESTS = environment.flag("LOG_REQUESTS", False)

#: Which part of the service this process is (web, worker, flower …); stands in every log line. `manage.py up` sets it.
PART = environment.text("PART", "manage")

LOGGING = logging_config(form=LOG_FORMAT, level=LOG_LEVEL, part=PART)

# --- Watching ---------------------------------------------------------------------------------------------------------

#: Seconds that a batch may be pending before GET /health/ready says that the service is not ready. 0 is for ever.
READY_MAX_PENDING_SECONDS = environment.whole("READY_MAX_PENDING_SECONDS", 60)

#: Where OpenTelemetry traces go (OTLP over HTTP, http://collector:4318); none are made when unset.
OTEL_EXPORTER_OTLP_ENDPOINT = environment.url("OTEL_EXPORTER_OTLP_ENDPOINT", "", ["http", "https"])

#: Sentry's address for errors; nothing is sent when unset.
SENTRY_DSN = environment.url("SENTRY_DSN", "", ["http", "https"])

#: Webhook that is told when something needs an operator, {"text": "…"} as Slack takes it; nobody is told when unset.
NOTIFY_URL = environment.url("NOTIFY_URL", "", ["http", "https"])

# --- Doors ------------------------------------------------------------------------------------------------------------

DEBUG = environment.flag("DEBUG", False)

#: For a service that others can reach, behind a proxy that ends TLS: keys are required, cookies and addresses are for
#: https only, and it does not start with what is only good enough for one's own machine.
PRODUCTION = environment.flag("PRODUCTION", False)

#: Closes everything but /health to whoever has no API key (manage.py apikey).
REQUIRE_API_KEY = environment.flag("REQUIRE_API_KEY", PRODUCTION)

#: Requests that a key may make, or an address where there are no keys: 100/second, 600/minute. Unlimited when unset.
THROTTLE_RATE = environment.rate("THROTTLE_RATE")

#: Host names the service answers to.
ALLOWED_HOSTS = environment.words("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])

#: Proxies whose X-Forwarded-For, X-Forwarded-Proto and Forwarded are believed: addresses or networks.
TRUSTED_PROXIES = environment.networks("TRUSTED_PROXIES")

#: Origins of web pages whose scripts may call the API from a browser (CORS). None when unset.
CORS_ALLOWED_ORIGINS = environment.origins("CORS_ALLOWED_ORIGINS")

#: Where the ports can be reached, if that is not BIND: in a container that listens on every address, the address of the
#: host that they are published on.
PUBLISH_ON = environment.text("PUBLISH_ON", BIND)

#: Who may use Flower, which shows and controls the worker: user:password. Everybody when unset.
FLOWER_BASIC_AUTH = environment.words("FLOWER_BASIC_AUTH")
for _pair in FLOWER_BASIC_AUTH:
    if not all(_pair.partition(":")):
        environment.mistakes.append("FLOWER_BASIC_AUTH must be user:password")


def _secret_key() -> str:
    """SECRET_KEY, or one made once and kept in DATA_DIR, readable by its owner only."""
    if given := environment.text("SECRET_KEY"):
        return given
    if PRODUCTION:
        # Parts on several machines would each make one of their own; and a volume that is shared has too many readers.
        environment.mistakes.append(
            "SECRET_KEY is not set, and with PRODUCTION=true it must be: "
            "python -c 'import secrets; print(secrets.token_urlsafe(50))' makes one"
        )
        return secrets.token_urlsafe(50)
    kept = DATA_DIR / "secret-key"
    try:
        if not kept.exists():
            # Written aside and linked into place: of several parts that start together, one wins and all read its key.
            with tempfile.NamedTemporaryFile("w", dir=DATA_DIR, prefix=".secret-key-") as fresh:
                fresh.write(secrets.token_urlsafe(50))
                fresh.flush()
                with suppress(FileExistsError):
                    kept.hardlink_to(fresh.name)
        return kept.read_text().strip()
    except OSError:
        # A command that only looks makes no folder for it. What is wrong with the folder events/checks.py says.
        return secrets.token_urlsafe(50)


SECRET_KEY = _secret_key()

if PRODUCTION:
    if not environment.text("ALLOWED_HOSTS"):
        environment.mistakes.append(
            "ALLOWED_HOSTS is not set, and with PRODUCTION=true it must name the service's host"
        )
    if not TRUSTED_PROXIES:
        environment.mistakes.append(
            "TRUSTED_PROXIES is not set, and with PRODUCTION=true it must: the address of the proxy that ends TLS"
        )
    if not FLOWER_BASIC_AUTH and not NO_FLOWER:
        environment.mistakes.append(
            "FLOWER_BASIC_AUTH is not set, and with PRODUCTION=true it must be user:password, or NO_FLOWER=true"
        )
    SECURE_SSL_REDIRECT = True
    # Load balancers, the container and Prometheus ask these inside, without TLS.
    SECURE_REDIRECT_EXEMPT = [r"^health(/ready)?$", r"^metrics$"]
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True

CSRF_FAILURE_VIEW = "events.api.errors.csrf_failure"

SILENCED_SYSTEM_CHECKS = [
    # CsrfViewMiddleware is there, by the name of AdminCsrf.
    "security.W003",
    # AxesMiddleware is there, by the name of AdminAxes.
    "axes.W002",
    # Being in the browsers' preload list is a decision about a whole domain.
    "security.W021",
]

# Ten wrong passwords from one address (or IPv6 network), then no more from there for a quarter of an hour. Not by user
# name: a stranger could keep the operators out.
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = ["ip_address"]
AXES_CLIENT_IP_CALLABLE = "aggregator_project.proxies.client_network"
AXES_LOCKOUT_CALLABLE = "aggregator_project.middleware.locked_out"
AXES_RESET_ON_SUCCESS = True
# SQLite's writer is not for strangers: nothing is written for who is locked out already, nor for log-ins.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
# The log says which address it was. Who mistypes a user name may have typed a password.
AXES_SENSITIVE_PARAMETERS = ["username"]

# unfold's log-in form does not say where to go next.
LOGIN_REDIRECT_URL = "/admin/"

# For the pages of people. The rest is JSON.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        # Swagger UI's icons and the charts' backgrounds.
        "img-src": ["'self'", "data:"],
        # unfold writes its colours into the page, and Alpine and Swagger UI set style attributes.
        "style-src": ["'self'", "'unsafe-inline'"],
        # Alpine, which unfold is made with, compiles the expressions in its attributes. Nothing inline runs.
        "script-src": ["'self'", "'unsafe-eval'"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

# --- Django -----------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    # Before unfold: a template of ours replaces its own of the same name.
    "events",
    # Without its site, which is aggregator_project.admin's.
    "unfold.apps.BasicAppConfig",
    # Which loads the pages of the admin: 23 MB that a worker has no use for.
    "django.contrib.admin.apps.SimpleAdminConfig"
    if PART in ("worker", "beat")
    else "aggregator_project.admin.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "axes",
]

MIDDLEWARE = [
    "aggregator_project.requests.Requests",
    "aggregator_project.middleware.without_body_for_head",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "aggregator_project.middleware.PageCsp",
    "aggregator_project.middleware.AdminSession",
    "aggregator_project.middleware.CommonButForProbes",
    "aggregator_project.middleware.AdminCsrf",
    "aggregator_project.middleware.AdminAuthentication",
    "aggregator_project.middleware.AdminMessages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "aggregator_project.middleware.AdminAxes",
]
if CORS_ALLOWED_ORIGINS:
    INSTALLED_APPS.append("corsheaders")
    # Before all that answer, so that a script may also read why it was refused. Inside Requests, which names each.
    MIDDLEWARE.insert(1, "corsheaders.middleware.CorsMiddleware")
    # Not the admin. Scripts send a key of their own, and no cookies.
    CORS_URLS_REGEX = r"^/(?!admin/|static/)"
    CORS_ALLOW_HEADERS = [
        "accept",
        "authorization",
        "content-encoding",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "prefer",
        "x-api-key",
        "x-request-id",
    ]
    CORS_EXPOSE_HEADERS = ["Location", "Preference-Applied", "Retry-After", "WWW-Authenticate", "X-Request-ID"]
if TRUSTED_PROXIES:
    # Before all that ask who is calling, and whether over https.
    MIDDLEWARE.insert(0, "aggregator_project.proxies.TrustedProxies")

ROOT_URLCONF = "aggregator_project.urls"
WSGI_APPLICATION = "aggregator_project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

_database = DATABASES["default"]
_database["CONN_MAX_AGE"] = None
if _database["ENGINE"] == "django.db.backends.sqlite3":
    _database["OPTIONS"] = {
        # Take the writer lock at BEGIN: a transaction that reads first and upgrades later fails instead of waiting.
        "transaction_mode": "IMMEDIATE",
        "timeout": SQLITE_BUSY_SECONDS,
        "init_command": (
            "PRAGMA journal_mode=WAL;"
            f"PRAGMA synchronous={SQLITE_SYNCHRONOUS};"
            "PRAGMA temp_store=MEMORY;"
            # KiB of pages that a connection keeps, and web has one a thread. What they miss the system's cache has.
            f"PRAGMA cache_size=-{512 if PART == 'web' else 2000};"
            # Pages in the log before they are copied into the database, 16 MB: a publish seldom has to wait for that.
            "PRAGMA wal_autocheckpoint=4000;"
            # A burst may grow the log; give the disk back after the next checkpoint.
            "PRAGMA journal_size_limit=67108864;"
        ),
    }
    # A file, so that every thread and process of a test sees the same rows.
    _database["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
else:
    _database["CONN_HEALTH_CHECKS"] = True
    _options = _database.setdefault("OPTIONS", {})
    _options.setdefault("application_name", f"aggregator-{PART}")
    _options.setdefault("connect_timeout", 5)
    # A server that has vanished: milliseconds until what was sent to it and not acknowledged is given up.
    _options.setdefault("tcp_user_timeout", 15_000)
    # A worker whose host is cut off holds locks until the server gives it up: by default, after two hours.
    _options.setdefault(
        "options",
        "-c idle_in_transaction_session_timeout=15s"
        " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
    )
    if PART == "web":
        # It hands out connections that live, and gives idle ones back.
        _database["CONN_MAX_AGE"] = 0
        _options["pool"] = {"min_size": 1, "max_size": WEB_THREADS, "timeout": 5}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if CACHE_URL.startswith("locmem"):
    CACHES: dict[str, dict[str, Any]] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
else:
    CACHES = {
        "default": {
            "BACKEND": "aggregator_project.cache.KeptRedisCache",
            "LOCATION": CACHE_URL,
            # A publish waits no longer than this for a doorbell that does not answer; beat rings later.
            "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 0.5},
        }
    }
    if CACHE_URL.startswith("sentinel"):
        CACHES["default"]["BACKEND"] = "aggregator_project.cache.SentinelCache"
        CACHES["default"]["OPTIONS"] |= {"master": SENTINEL_MASTER, "sentinel_password": SENTINEL_PASSWORD}

STATIC_URL = "static/"
# Straight from the installed packages: nothing to collect before the first start.
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

# --- Celery -----------------------------------------------------------------------------------------------------------

CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CONCURRENCY = WORKER_CONCURRENCY
CELERY_TASK_IGNORE_RESULT = True
#: Seconds; a drain ends after events.store.DRAIN_SECONDS, so a task that is still there is stuck.
CELERY_TASK_SOFT_TIME_LIMIT = 60
CELERY_TASK_TIME_LIMIT = 90
# Flower shows what workers report.
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_TASK_SEND_SENT_EVENT = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A broker that answers, but refuses what is asked of it, is away as well: a Redis that may not write.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_BROKER_CONNECTION_TIMEOUT = 2
# A publish never waits for a broker: the batch is on disk, and beat rings later.
CELERY_TASK_PUBLISH_RETRY = False
if CELERY_BROKER_URL.startswith("amqp"):
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {"confirm_publish": True, "max_retries": 0}
    # Replicated, so that a ring survives the loss of a node. The worker sees it and asks for messages accordingly.
    CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
    # Web processes send no heartbeats, and RabbitMQ would cut them off. Workers do: celery.py.
    CELERY_BROKER_HEARTBEAT = 0
    if CELERY_BROKER_URL.startswith("amqps"):
        # Against the system's authorities, or those of SSL_CERT_FILE. amqp would not look at the name by itself.
        CELERY_BROKER_USE_SSL = {
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": urlsplit(CELERY_BROKER_URL).hostname,
        }
else:
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        # Seconds until an unacknowledged task is given to another worker; longer than its hard time limit.
        "visibility_timeout": 120,
        "socket_connect_timeout": 1,
        "socket_timeout": 5,
        "retry_on_timeout": False,
        "max_retries": 0,
        # Of sentinel:// only.
        "master_name": SENTINEL_MASTER,
        "sentinel_kwargs": {"socket_timeout": 1, "password": SENTINEL_PASSWORD or None},
    }
    if CELERY_BROKER_URL.startswith("rediss") and "ssl_cert_reqs=" not in CELERY_BROKER_URL:
        # kombu would take any certificate. ?ssl_cert_reqs=none says that this is meant.
        CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
CELERY_BEAT_SCHEDULER = "aggregator_project.beat:Scheduler"
#: Seconds between two looks of beat at the inbox: the longest a batch waits whose ring was lost.
SWEEP_SECONDS = 2
CELERY_BEAT_SCHEDULE = {
    "sweep-inbox": {
        "task": "events.process_inbox",
        "schedule": Every(SWEEP_SECONDS),
        # While workers are away their queue must not fill with sweeps that all do the same. Far more than the seconds
        # by which the clocks of two hosts may differ.
        "options": {"expires": 60},
    },
    # At night, UTC. Where nothing is old enough it is over in milliseconds.
    "prune": {"task": "events.prune", "schedule": crontab(hour="3", minute="17")},
}
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "beat-schedule")
CELERY_TIMEZONE = "UTC"

# --- API --------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["events.api.json.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["events.api.body.BodyParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "events.api.json.ContentNegotiation",
    "URL_FORMAT_OVERRIDE": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "events.api.errors.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Event aggregator",
    "VERSION": "1.0.0",
    "SWAGGER_UI_DIST": "SIDECAR",
    # events/templates/events/docs.html has ours.
    "SWAGGER_UI_FAVICON_HREF": "",
    "SERVE_INCLUDE_SCHEMA": False,
    "OAS_VERSION": "3.1.0",
    # In the order of events/api/urls.py: publish first.
    "SORT_OPERATIONS": False,
    "POSTPROCESSING_HOOKS": ["events.api.schema.add_types", "events.api.schema.introduce"],
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "displayRequestDuration": True, "tryItOutEnabled": True},
}

# --- Admin ------------------------------------------------------------------------------------------------------------

UNFOLD = {
    "SITE_TITLE": "Event aggregator",
    "SITE_HEADER": "Event aggregator",
    "SITE_SYMBOL": "join_inner",
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("events/favicon.svg")},
    ],
    "STYLES": [lambda request: static("events/admin.css")],
    "DASHBOARD_CALLBACK": "events.admin.site.index",
    "SIDEBAR": {"navigation": "events.admin.site.navigation", "show_search": True, "command_search": True},
    # Blue stands for what is unique, amber for duplicates; see admin.css.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        }
    },
}
