"""README.md is true: its commands work as they stand, and answer in the shape that it shows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import get_commands

from tests.test_up import Up, until

pytestmark = [
    pytest.mark.xdist_group("stack"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl"),
]

README = (settings.BASE_DIR / "README.md").read_text()
#: Each block, as (kind, text).
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
#: Each block that a reader can run against a service, with the block that follows it.
EXAMPLES = [
    (kind, code, BLOCKS[place + 1] if place + 1 < len(BLOCKS) else ("", ""))
    for place, (kind, code) in enumerate(BLOCKS)
    if kind == "python" or (kind == "sh" and ("curl" in code or "manage.py publish" in code))
]


#: What a reader does first, on a service without any event: here the values are as shown, too.
TUTORIAL = README.split("\n## Tutorial\n")[1].split("\n## ")[0]


def settled(service: Up) -> dict[str, Any] | None:
    """The statistics, once nothing is pending."""
    stats: dict[str, Any] = service.http.get("/stats").json()
    return None if stats["pending"] else stats


def run(service: Up, kind: str, code: str, folder: Path) -> str:
    here = code.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}").replace(".venv/bin/python", sys.executable)
    here = here.replace(
        "manage.py publish", f"{settings.BASE_DIR}/manage.py publish --url http://127.0.0.1:{service.port}"
    )
    program = [sys.executable, "-c"] if kind == "python" else ["bash", "-euc"]
    done = subprocess.run(
        [*program, here],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(settings.BASE_DIR)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def timeless(value: Any) -> Any:
    """An answer without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key != "uptime" and not key.endswith("_at")}
    if isinstance(value, list):
        return [timeless(entry) for entry in value]
    return value


def shape(value: Any) -> Any:
    """What kind of thing stands where. Names of topics are values, not part of the shape."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items() if "." not in key}
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value).__name__


def test_one_after_the_other_they_work_and_answer_in_the_shape_that_is_shown(tmp_path: Path) -> None:
    """In the reader's order, on one service: what one example publishes, the next ones show."""
    assert {kind for kind, _, _ in EXAMPLES} == {"sh", "python"}
    with Up(tmp_path / "service", "--no-flower") as service:
        until(service.answers, "a web process listens, which comes a moment after its line")
        for kind, code, (shown_kind, shown) in EXAMPLES:
            # A reader does not type as fast as this.
            before = until(lambda: settled(service), "everything was stored")
            output = run(service, kind, code, tmp_path)
            if "client.publish" in code:
                assert service.http.get("/stats").json()["received"] == before["received"] + 1
            elif kind == "python":
                assert "evt-12345" in output
            elif shown_kind == "json":
                assert shape(json.loads(output)) == shape(json.loads(shown)), code
                if code in TUTORIAL:
                    assert timeless(json.loads(output)) == timeless(json.loads(shown)), code
            elif shown.startswith("HTTP/1.1"):
                assert output.splitlines()[0].strip() == shown.splitlines()[0], code


def test_every_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (settings.BASE_DIR / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`?", README)) <= targets
    assert set(re.findall(r"manage\.py ([a-z]+)", README)) <= set(get_commands())


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (settings.BASE_DIR / target).exists(), target
