"""`python -m tests.docker.bare [TEST …]`: `make test`, or some tests of it, on a machine that has next to nothing.

A container with Python, make and git, and a user without root, who clones what is committed here. Exit code 0 if the
tests pass. The container gets this machine's configuration of pip, and the folders that it names.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.docker.engine import NAME, ROOT, docker, say

IMAGE = "python:3.13-slim"

#: Variables that say how to reach an index.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

#: Runs as root.
PREPARE = """
set -eu
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends git make >/dev/null
useradd --create-home tester
exec setpriv --reuid tester --regid tester --init-groups env HOME=/home/tester sh -euc "$1"
"""
#: Runs as the user.
TEST = """
cd
git -c advice.detachedHead=false clone -q /checkout.bundle checkout
cd checkout
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docker.bare", description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs=argparse.REMAINDER, help="only these; what pytest takes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    test = "make test"
    if options.tests:
        test = f"make .venv/.ready-dev && .venv/bin/python -m pytest -q {shlex.join(options.tests)}"
    name = f"{NAME}-bare"
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "checkout.bundle"
        subprocess.run(["git", "bundle", "create", "-q", bundle, "HEAD"], cwd=ROOT, check=True)
        bundle.chmod(0o644)
        if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True).stdout:
            say("What is not committed is not tested.")
        try:
            return subprocess.run(
                [
                    "docker", "run", "--rm", "--init", "--name", name, "--label", NAME, "--network", "host",
                    "-v", f"{bundle}:/checkout.bundle:ro", *pip_configuration(),
                    IMAGE, "sh", "-euc", PREPARE, "sh", TEST + test,
                ],
                check=False,
            ).returncode  # fmt: skip
        finally:
            docker("rm", "-fv", name, check=False)


def pip_configuration() -> list[str]:
    """Options of `docker run` by which pip finds in the container what it finds here."""
    # By name: a URL may hold a password, which is nothing for a list of processes.
    words = [word for name in os.environ if name.startswith("PIP_") or name.upper() in PROXIES for word in ("-e", name)]
    pip = [sys.executable, "-m", "pip", "config"]
    debug = subprocess.run([*pip, "debug"], capture_output=True, text=True, check=True).stdout
    files = [
        line.strip().removesuffix(", exists: True") for line in debug.splitlines() if line.endswith("exists: True")
    ]
    listed = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout
    values = [value for line in listed.splitlines() for value in line.partition("=")[2].strip("'\"").split()]
    # Of an index that is a folder the pages lead to files beside it.
    named = [
        str(Path(unquote(urlsplit(value).path)).parent) if value.startswith("file:") else value for value in values
    ]
    # A file in this user's home is none that the container's could read.
    for place, file in enumerate(files):
        where = f"/etc/pip.{place}.conf" if Path(file).is_relative_to(Path.home()) else file
        if where == file:
            words += ["-v", f"{file}:{file}:ro"]
        else:
            words += ["-v", f"{file}:{where}:ro", "-e", f"PIP_CONFIG_FILE={where}"]
    for path in dict.fromkeys(path for path in named if path.startswith("/") and Path(path).exists()):
        if path not in files:
            words += ["-v", f"{path}:{path}:ro"]
    return words


if __name__ == "__main__":
    sys.exit(main())
