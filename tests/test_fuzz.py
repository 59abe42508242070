"""Requests that schemathesis makes up from /schema, good and bad, against a running service: only documented answers.

`python -m tests.test_fuzz 10000` (make fuzz) does as many as that; the test a few hundred.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.test import Client

from tests.server import Server, serving

# They share a service.
pytestmark = pytest.mark.xdist_group("fuzz")

#: Requests of each of the seven calls in the test. With those of the other phases they are three hundred.
EXAMPLES = 25
#: Seconds a run may take at most.
TIME_LIMIT = 900


class Run:
    """What came of one run of schemathesis.

    Attributes:
        code, text: its exit code and what it wrote.
        exchanges: (request, response) of every request, as a HAR file has them.
    """

    def __init__(self, server: Server, *options: str) -> None:
        har = server.folder / "requests.har"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
                *("run", f"{server.url}/schema", "--request-timeout", "30"),
                *(
                    "--generation-database",
                    "none",
                    "--generation-allow-x00",
                    "false",
                    "--report",
                    "har",
                    "--report-har-path",
                    str(har),
                    *options,
                ),
            ],
            cwd=server.folder,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(settings.BASE_DIR)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT,
        )
        self.code, self.text = done.returncode, done.stdout + done.stderr
        entries = json.loads(har.read_text())["log"]["entries"]
        self.exchanges = [(entry["request"], entry["response"]) for entry in entries]

    def statuses(self) -> Counter[int]:
        return Counter(response["status"] for _, response in self.exchanges)

    def accepted(self) -> dict[int, int]:
        """How many events each batch has that was answered 202. One that was named twice is one."""
        found: dict[int, int] = {}
        for _, response in self.exchanges:
            if response["status"] == 202:
                receipt: dict[str, Any] = json.loads(response["content"]["text"])
                found[receipt["batch_id"]] = receipt["received"]
        return found


def rows(server: Server) -> dict[int, int]:
    """How many events each batch has that is in the inbox."""
    with closing(connect(server.folder / "aggregator.sqlite3")) as database:
        return dict(database.execute("SELECT id, received FROM events_batch"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Server, Run]":
    with serving(tmp_path_factory.mktemp("fuzz")) as server:
        run = Run(server, "--max-examples", str(EXAMPLES), "--no-shrink")
        assert httpx.get(f"{server.url}/health").status_code == 200
        return server, run


def test_every_answer_is_a_documented_one(run: tuple[Server, Run]) -> None:
    assert run[1].code == 0, run[1].text
    assert len(run[1].exchanges) > 200


def test_no_answer_is_a_mistake_of_ours(run: tuple[Server, Run]) -> None:
    server, found = run
    assert found.statuses()[500] == 0
    assert "Traceback" not in server.log


def test_what_was_accepted_is_in_the_inbox_and_nothing_else(run: tuple[Server, Run]) -> None:
    server, found = run
    assert found.statuses()[400] > 0
    assert found.accepted() == rows(server) != {}


# --- What it has found ------------------------------------------------------------------------------------------------


def test_the_schema_says_that_a_publish_has_a_body_and_how_long_its_name_may_be(client: Client) -> None:
    schema = client.get("/schema", headers={"Accept": "application/json"}).json()
    publish = schema["paths"]["/publish"]["post"]
    assert publish["requestBody"]["required"] is True
    [name] = [parameter for parameter in publish["parameters"] if parameter["name"] == "Idempotency-Key"]
    assert (name["schema"]["minLength"], name["schema"]["maxLength"]) == (1, 255)


def test_the_schema_says_which_numbers_a_batch_may_have(client: Client) -> None:
    schema = client.get("/schema", headers={"Accept": "application/json"}).json()
    [number] = [found for found in schema["paths"]["/events"]["get"]["parameters"] if found["name"] == "batch_id"]
    assert (number["schema"]["minimum"], number["schema"]["maximum"]) == (1, 2**63 - 1)


def main() -> None:
    """Makes as many requests as it is told, in runs of other seeds, and stops at the first that finds something."""
    wanted, made, seed = int(sys.argv[1]), 0, int(os.environ.get("SEED", "1"))
    statuses: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="aggregator-fuzz-") as folder, serving(Path(folder)) as server:
        accepted: dict[int, int] = {}
        while made < wanted:
            run = Run(server, "--max-examples", "400", "--seed", str(seed))
            made += len(run.exchanges)
            statuses += run.statuses()
            accepted |= run.accepted()
            sys.stdout.write(f"seed {seed}: {made:,} requests, {dict(sorted(statuses.items()))}\n")
            sys.stdout.flush()
            if run.code or "Traceback" in server.log:
                sys.exit(f"{run.text[-20_000:]}\n{server.log[-5_000:]}")
            seed += 1
        if accepted != rows(server):
            sys.exit("The inbox is not what was accepted.")
        sys.stdout.write(f"{made:,} requests: only documented answers, {len(accepted):,} publishes in the inbox.\n")


if __name__ == "__main__":
    main()
