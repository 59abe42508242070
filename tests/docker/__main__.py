"""`python -m tests.docker`: builds the image, runs it alone and by both Compose files, breaks it, checks the books.

Needs Docker and Python, nothing else. Exit code 0 if every claim holds. Everything it makes has a name of its own
and is taken away. What needs an image that cannot be had is left out, and named at the end.
"""

import argparse
import json
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.request import urlopen

from tests.docker.engine import (
    NAME,
    ROOT,
    Compose,
    Failed,
    Service,
    claim,
    clean,
    docker,
    free_port,
    here,
    say,
    until,
)

#: Bytes that our layers may add to the base: 250 MB for the whole image, 125 MB of it the base's.
MOST_BYTES = 125_000_000
#: Events of the load during which parts are killed, and those of it that are new.
LOAD_EVENTS, LOAD_NEW = 8_000, 6_400
#: Events a second of it: about 16 s, so that there is time to kill.
LOAD_RATE = 500

#: Shut in as both Compose files do it.
SHUT_IN = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


def main() -> int:
    stories: dict[str, Callable[[str], None]] = {
        "image": image,
        "single": single,
        "compose": compose,
        "cluster": cluster,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.docker", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=stories, default=list(stories), help="run these")
    parser.add_argument("--image", help="an image that is built already")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    built = options.image or NAME
    try:
        if not options.image:
            with timed("the image is built"):
                docker("build", "-q", "--network", "host", "-t", built, ".", seconds=1800)
        for name in options.only:
            say(f"\n{name}: {stories[name].__doc__.splitlines()[0]}")
            stories[name](built)
    except Failed as error:
        say(f"\nFAILED: {error}")
        return 1
    finally:
        clean(_projects)
        if not options.image:
            docker("rmi", "-f", built, check=False)
    say("\nEvery claim holds." + "".join(f"\nNot run: {what}" for what in _left_out))
    return 0


_projects: list[Compose] = []
_left_out: list[str] = []


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"  ok  {what} ({time.monotonic() - began:.0f} s)")


def image(built: str) -> None:
    """The image is small, runs as nobody, and says what it is."""
    facts = json.loads(docker("image", "inspect", built))[0]["Config"]
    claim(facts["User"] not in ("", "0", "root"), f"it runs as user {facts['User']}")
    labels = sorted(name for name in facts["Labels"] if name.startswith("org.opencontainers.image."))
    claim(len(labels) >= 3, f"it has {len(labels)} OCI labels")
    base = re.findall(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    if not here(base):
        raise Failed(f"{base} cannot be had, so what is ours of {built} cannot be told")
    sizes = [int(docker("image", "inspect", "-f", "{{.Size}}", name)) for name in (built, base)]
    ours = sizes[0] - sizes[1]
    claim(ours < MOST_BYTES, f"its own layers are {ours / 1e6:.0f} MB of at most {MOST_BYTES / 1e6:.0f}")
    out = docker(
        "run", "--rm", "--label", NAME, *SHUT_IN, "-e", "PUBLISH_ON=0.0.0.0", built, "python", "manage.py", "check"
    )
    claim("no issues" in out, "its settings are right")
    out = docker("run", "--rm", "--label", NAME, "-e", "PORT=x", built, "python", "manage.py", "up", check=False)
    claim("PORT" in out and "Traceback" not in out, "a wrong setting is said in a line")


def single(built: str) -> None:
    """One container with everything in it keeps its data."""
    port, name, volume = free_port(), f"{NAME}-single", f"{NAME}-data"

    def run(*options: str) -> None:
        docker(
            "run", "-d", "--name", name, "--label", NAME, *options,
            "-p", f"127.0.0.1:{port}:8080", "-v", f"{volume}:/app/data", built,
        )  # fmt: skip

    service = Service(port, f"container:{name}", "http://127.0.0.1:8080", built, name)
    with timed("it starts, its root read-only and without capabilities"):
        run(*SHUT_IN)
        service.ready()
    three_publishes(service, restart=lambda: docker("restart", "-t", "10", name))
    ask = ("inspect", "-f", "{{.State.Health.Status}}", name)
    until(lambda: docker(*ask).strip() == "healthy", "Docker finds it healthy")
    began = time.monotonic()
    docker("stop", "-t", "10", name)
    code = docker("inspect", "-f", "{{.State.ExitCode}}", name).strip()
    took = time.monotonic() - began
    claim(code == "0" and took < 10, f"SIGTERM ends it with exit code {code} after {took:.1f} s")
    docker("rm", "-v", name)
    run()
    service.ready()
    claim(
        service.books()["unique_processed"] == 4_000, "another container on the same volume, not shut in, has its 4,000"
    )
    service.audit()
    docker("rm", "-fv", name)


def compose(built: str) -> None:
    """docker-compose.yml: SQLite on a volume that several containers share."""
    if not here("redis:8-alpine"):
        _left_out.append("docker-compose.yml, for want of the image redis:8-alpine")
        return
    port = free_port()
    project = Compose("docker-compose.yml", IMAGE=built, PORT=port, FLOWER_PORT=free_port())
    _projects.append(project)
    with timed("it comes up, in order"):
        project("up", "-d", "--no-build")
    service = Service(port, project.network, "http://aggregator:8080", built, project.containers("aggregator")[0])
    service.ready()
    [publisher] = project.containers("publisher")
    until(lambda: docker("inspect", "-f", "{{.State.Status}}", publisher).strip() == "exited", "the publisher ends")
    claim(
        docker("inspect", "-f", "{{.State.ExitCode}}", publisher).strip() == "0", "its publisher finds nothing missing"
    )
    parts = [name for part in ("aggregator", "worker", "flower", "redis") for name in project.containers(part)]
    three_publishes(service, restart=lambda: docker("restart", "-t", "10", *parts), first=False)
    [worker] = project.containers("worker")
    modes = [docker("exec", name, "python", "-c", _ASK_SQLITE).strip() for name in (service.container, worker)]
    claim(modes == ["wal ok"] * 2, "SQLite is in WAL mode and intact, seen from two containers")
    under_load(service, killed=[worker], started_again=[worker], other=project.containers("flower")[0])


#: Prints SQLite's journal mode, and "ok" if the file is as it should be.
_ASK_SQLITE = (
    "import sqlite3; at = sqlite3.connect('/app/data/aggregator.sqlite3'); "
    "print(*at.execute('pragma journal_mode').fetchone(), *at.execute('pragma integrity_check').fetchone())"
)


def cluster(built: str) -> None:
    """docker-compose.cluster.yml: PostgreSQL, RabbitMQ, two web and two worker containers."""
    file = "docker-compose.cluster.yml"
    images = {part: _image(file, part) for part in ("postgres", "rabbitmq", "balancer", "prometheus", "grafana")}
    missing = {part for part, name in images.items() if not here(name)}
    if wanting := missing & {"postgres", "rabbitmq"}:
        _left_out.append(f"{file}, for want of the images {', '.join(sorted(images[part] for part in wanting))}")
        return
    _left_out.extend(f"{part} of {file}, for want of the image {images[part]}" for part in sorted(missing))

    try:
        Compose(file, POSTGRES_PASSWORD="", RABBITMQ_PASSWORD="", SECRET_KEY="", FLOWER_BASIC_AUTH="")("config")
        refused = ""
    except Failed as error:
        refused = str(error)
    claim("of letters and digits" in refused, "without its secrets it does not start, and says so")

    ports = {name: free_port() for name in ("PORT", "FLOWER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    words = ("POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "SECRET_KEY", "GRAFANA_PASSWORD")
    made = {name: secrets.token_hex(25) for name in words}
    project = Compose(
        file,
        IMAGE=built,
        FLOWER_BASIC_AUTH="operator:secret",
        ALLOWED_HOSTS="localhost,web",
        WEB=2,
        WORKERS=2,
        **ports,
        **made,
    )
    _projects.append(project)
    parts = ["web", "worker", "beat", "flower"]
    front = "web" if "balancer" in missing else "balancer"
    with timed("it comes up, in order"):
        project("up", "-d", "--no-build", *parts, *({"balancer"} - missing))
    web, workers = project.containers("web"), project.containers("worker")
    claim((len(web), len(workers)) == (2, 2), "two web and two worker containers run")
    service = Reached(project, ports["PORT"], f"http://{front}:8080", built, beside=workers[1])
    service.ready()
    every = [
        name
        for part in ("postgres", "rabbitmq", *parts, *({"balancer"} - missing))
        for name in project.containers(part)
    ]
    three_publishes(service, restart=lambda: docker("restart", "-t", "20", *every))
    under_load(service, killed=[workers[0], web[0]], started_again=[], other=project.containers("beat")[0])
    docker("start", workers[0], web[0])
    project("up", "-d", "--no-build", "--no-recreate", "--scale", "web=3", "--scale", "worker=3", "web", "worker")
    claim(len(project.containers("web")) == 3, "a third web and a third worker container join")
    claim("Nothing is missing" in service.publisher(PUBLISH_FRESH="true").ended(), "and nothing is missing afterwards")
    service.audit()
    if "prometheus" not in missing:
        watched(project, ports)


class Reached(Service):
    """The cluster's service: by its balancer's port, or without one by a container beside it."""

    def __init__(self, project: Compose, port: int, url: str, image: str, *, beside: str) -> None:
        super().__init__(port, project.network, url, image, beside)
        self._balanced = "balancer" in url

    def get(self, path: str) -> object:
        if self._balanced:
            return super().get(path)
        ask = f"import urllib.request; print(urllib.request.urlopen('{self.url}{path}', timeout=10).read().decode())"
        return json.loads(docker("exec", self.container, "python", "-c", ask, check=False))


def watched(project: Compose, ports: dict[str, int]) -> None:
    """Prometheus scrapes the service and knows the alerts; Grafana has the dashboard."""
    grafana = here(_image("docker-compose.cluster.yml", "grafana"))
    project(
        "--profile", "observe", "up", "-d", "--no-build", "--no-deps", "prometheus", *(["grafana"] if grafana else [])
    )

    def ask(what: str) -> dict[str, object]:
        with urlopen(f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/{what}", timeout=5) as answer:
            return dict(json.load(answer)["data"])

    until(lambda: ask("query?query=aggregator_events_unique_total")["result"], "Prometheus has the books")
    claim(len(ask("rules")["groups"][0]["rules"]) >= 5, "Prometheus has the books and the alerts")  # type: ignore[index]
    if grafana:

        def dashboard() -> object:
            address = f"http://127.0.0.1:{ports['GRAFANA_PORT']}/api/health"
            with urlopen(address, timeout=5) as answer:
                return json.load(answer).get("database") == "ok"

        until(dashboard, "Grafana answers")
        claim(True, "Grafana answers")


def three_publishes(service: Service, *, restart: Callable[[], object], first: bool = True) -> None:
    """5,000 events with 1,000 duplicates; a restart of everything; the same again, which is all duplicates."""
    if first:
        claim("4,000 new + 1,000 duplicates" in service.publisher().ended(), "5,000 published")
    wanted = {"received": 5_000, "unique_processed": 4_000, "duplicate_dropped": 1_000}
    books = service.books()
    claim({name: books[name] for name in wanted} == wanted, "5,000 received, 4,000 unique, 1,000 dropped")
    with timed("everything is restarted"):
        restart()
        service.ready()
    books = service.books()
    claim({name: books[name] for name in wanted} == wanted, "afterwards the books say the same")
    service.publisher().ended()
    books = service.books()
    claim(books["unique_processed"] == 4_000, "the same 5,000 once more: unique stays 4,000")
    claim((books["received"], books["duplicate_dropped"]) == (10_000, 6_000), "10,000 received, 6,000 dropped")
    service.audit()


def under_load(service: Service, *, killed: list[str], started_again: list[str], other: str) -> None:
    """Containers are killed while events come in. Every event that was answered 202 is there, once."""
    before = service.books()
    publisher = service.publisher(
        PUBLISH_COUNT=LOAD_EVENTS, PUBLISH_FRESH="true", PUBLISH_BATCH_SIZE=10, PUBLISH_RATE=LOAD_RATE
    )
    until(lambda: service.get("/stats")["received"] > before["received"] + LOAD_EVENTS / 10, "the load has begun")
    docker("kill", "-s", "KILL", *killed)
    for name in started_again:
        docker("start", name)
    # Beside the writers, from another container: one snapshot, right at every moment.
    out = docker("exec", other, "python", "manage.py", "audit")
    claim("The books are right" in out, "audit in another container while events come in")
    claim(publisher.running(), f"{len(killed)} killed while events came in")
    said = publisher.ended()
    books = service.books()
    new = books["unique_processed"] - before["unique_processed"]
    claim(new == LOAD_NEW, f"{new:,} new events stored of {LOAD_NEW:,}: none lost, none twice")
    grown = books["received"] - before["received"]
    claim(grown >= LOAD_EVENTS and not books["failed"], f"{grown:,} received of {LOAD_EVENTS:,} sent; {said}")
    service.audit()


def _image(file: str, service: str) -> str:
    """The image of a service as the file names it, without an environment."""
    found = re.search(
        rf"^  {service}:\n(?:    .*\n)*?    image: (?:\$\{{\w+:-)?([^}}\n]+)", (ROOT / file).read_text(), re.MULTILINE
    )
    if not found:
        raise Failed(f"{file} has no image for {service}")
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
