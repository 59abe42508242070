"""`python -m bench.profile`: flame graphs of a web process and of the worker under load, into docs/images/."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

#: Seconds of load that are sampled, and samples a second: enough to see what costs a percent, small enough to keep.
SECONDS = 10
SAMPLES = 100
#: What is loaded with what: the web with single posts, the worker with batches.
GRAPHS = (("web", 1), ("worker", 100))

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def main() -> int:
    if not (py_spy := shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")):
        sys.stderr.write("py-spy is not installed: pip install py-spy\n")
        return 1
    with TemporaryDirectory(prefix="aggregator-bench-") as folder:
        os.environ["DJANGO_SETTINGS_MODULE"] = "aggregator_project.settings"
        os.environ["DATA_DIR"] = folder
        _profile(py_spy, Path(folder))
    return 0


def _profile(py_spy: str, folder: Path) -> None:
    from bench.workbench import Workbench

    bench = Workbench(folder=folder, seconds=SECONDS, runs=1, large=0, keep=None, say=lambda text: None)
    IMAGES.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(bench.stacks)
        service = bench.service()
        for part, size in GRAPHS:
            before = service.processor_seconds(part)
            bench.warm_up(service, size)
            used = service.processor_seconds(part)
            # Of a part's processes, the one that does the work.
            worked = max(used, key=lambda pid: used[pid] - before.get(pid, 0.0))
            image = IMAGES / f"{part}.svg"
            how = ["--duration", str(SECONDS), "--rate", str(SAMPLES), "--format", "flamegraph"]
            command = [py_spy, "record", *how, "--output", str(image), "--pid", str(worked)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sampling:  # noqa: S603
                bench.measure(service, size, seconds=SECONDS + 2)
                sampling.wait()
            # py-spy's title is its command, with the paths of the machine it ran on.
            title = f"{part}: {'single posts' if size == 1 else f'batches of {size}'}, {SECONDS} s"
            image.write_text(image.read_text().replace(" ".join(command), title))
            sys.stdout.write(f"{image}: {image.stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    sys.exit(main())
