"""Opens the browser: Chromium as the system's packages install it, or the one that Playwright brought."""

import os
import shutil
from pathlib import Path

from playwright.sync_api import Browser, Playwright

#: The program's names in the system's packages.
NAMES = ("chromium", "chromium-browser", "google-chrome")

#: No calls home: what the pages ask for is what a test counts.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


#: Where `playwright install chromium` puts it, on Linux and on macOS.
FOLDERS = (Path.home() / ".cache" / "ms-playwright", Path.home() / "Library" / "Caches" / "ms-playwright")


def may_be_installed() -> bool:
    """Whether a Chromium may be here. Asks nothing of Playwright's driver, which does not run on every machine."""
    folders = [Path(named)] if (named := os.environ.get("PLAYWRIGHT_BROWSERS_PATH")) else FOLDERS
    return any(map(shutil.which, NAMES)) or any(any(folder.glob("chromium*")) for folder in folders)


def executable(playwright: Playwright) -> str | None:
    """Where a Chromium is, None where there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    bundled = playwright.chromium.executable_path
    return bundled if Path(bundled).exists() else None


def launch(playwright: Playwright, path: str) -> Browser:
    return playwright.chromium.launch(executable_path=path, headless=True, args=list(ARGUMENTS))
