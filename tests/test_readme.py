"""README.md is true: its commands work as they stand, and answer in the shape that it shows."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import get_commands

from tests.test_up import Up

pytestmark = [
    pytest.mark.xdist_group("stack"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl"),
]

README = (settings.BASE_DIR / "README.md").read_text()
#: Each block of a kind, with the kind and text of the block that follows it.
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [
    (code, BLOCKS[place + 1] if place + 1 < len(BLOCKS) else ("", ""))
    for place, (kind, code) in enumerate(BLOCKS)
    if kind == "sh" and ("curl" in code or "manage.py publish" in code)
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("readme"), "--no-flower") as running:
        yield running


def run(service: Up, code: str, folder: Path) -> str:
    here = code.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}").replace(".venv/bin/python", sys.executable)
    here = here.replace(
        "manage.py publish", f"{settings.BASE_DIR}/manage.py publish --url http://127.0.0.1:{service.port}"
    )
    done = subprocess.run(["bash", "-euc", here], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shape(value: Any) -> Any:
    """What kind of thing stands where. Names of topics are values, not part of the shape."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items() if "." not in key}
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value).__name__


def test_every_command_works_and_answers_in_the_shape_that_is_shown(service: Up, tmp_path: Path) -> None:
    for code, (kind, shown) in SHELL:
        output = run(service, code, tmp_path)
        if kind == "json":
            assert shape(json.loads(output)) == shape(json.loads(shown)), code
        elif shown.startswith("HTTP/1.1"):
            assert output.splitlines()[0].strip() == shown.splitlines()[0], code


def test_the_python_example_publishes(service: Up, tmp_path: Path) -> None:
    [code] = [code for kind, code in BLOCKS if kind == "python"]
    here = code.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}") + "\nprint(receipt.received)"
    done = subprocess.run(
        [sys.executable, "-c", here], cwd=settings.BASE_DIR, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "1", done.stderr


def test_every_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (settings.BASE_DIR / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`?", README)) <= targets
    assert set(re.findall(r"manage\.py ([a-z]+)", README)) <= set(get_commands())


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (settings.BASE_DIR / target).exists(), target
