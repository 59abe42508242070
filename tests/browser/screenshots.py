"""`python -m tests.browser.screenshots [FOLDER]` takes the pictures of docs/images/ again."""

import os
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chromium import executable, launch
from tests.browser.service import ROOT, Service, running

WIDE, NARROW = 1440, 390
#: Pixels of height at which a page ends where its content does: the whole menu; the figures, on a phone.
HEIGHTS = {WIDE: 800, NARROW: 826}
#: Where the sidebar is hidden, so that a picture that is shown small can be read.
WITHOUT_SIDEBAR = {"width": 1100, "height": 570}


def history(data: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.browser.history", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(data), "LOG_LEVEL": "ERROR", "SQLITE_SYNCHRONOUS": "NORMAL"},
        check=True,
    )


def logged_in(browser: Browser, service: Service, width: int, theme: str) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHTS[width]},
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{service.url}/admin/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", service.password)
    page.click("button[type=submit]")
    page.wait_for_selector("#dashboard")
    return page


def show_usual_port(page: Page, service: Service) -> None:
    """Shows the commands of a page as they are where the service runs on its usual port."""
    page.evaluate(
        "(address) => document.querySelectorAll('pre').forEach((command) => {"
        " command.innerHTML = command.innerHTML.replaceAll(address, 'http://127.0.0.1:8080'); })",
        service.url,
    )


def first_link(page: Page, address: str, selector: str) -> str:
    page.goto(address)
    return str(page.locator(selector).first.get_attribute("href"))


def take(folder: Path, *, everything: bool) -> None:
    """Starts a service with a day of history and takes the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, running(history) as service:
        path = executable(playwright)
        assert path, "There is no Chromium: install the system's package, or run `playwright install chromium`."
        browser = launch(playwright, path)
        page = logged_in(browser, service, WIDE, "light")
        expect(page.locator("#verdict")).to_have_text("All is well", timeout=60_000)
        page.set_viewport_size({"width": WIDE, "height": 1030})
        page.screenshot(path=folder / "dashboard-light.png")
        page.goto(f"{service.url}/")
        expect(page.locator("#verdict")).to_have_text("All is well")
        show_usual_port(page, service)
        page.screenshot(path=folder / "start.png", full_page=True)
        page.set_viewport_size({"width": WIDE, "height": HEIGHTS[WIDE]})
        history(service.data, "--dead-letter")
        admin = f"{service.url}/admin"
        event = first_link(page, f"{admin}/events/event/?topic=order.placed", "#result_list a.key")
        duplicate = first_link(page, f"{admin}/events/duplicate/?payload=differs", "#result_list a.key")
        batch = first_link(page, f"{admin}/events/batch/?status=failed", "#result_list a.key")
        pages = {
            "start": "/",
            "dashboard": "/admin/",
            "dashboard-day": "/admin/?window=day",
            "events": "/admin/events/event/?topic=order.placed",
            "event": event,
            "duplicates": "/admin/events/duplicate/",
            "duplicate": duplicate,
            "batches": "/admin/events/batch/",
            "dead-letter": batch,
            "topics": "/admin/events/topictotal/",
            "sources": "/admin/events/sourcetotal/",
            "nothing": "/admin/events/event/?topic=nowhere",
        }
        chosen = {
            "dashboard-dark-phone": ("dashboard", NARROW, "dark"),
            "duplicate": ("duplicate", WIDE, "light"),
        }
        if everything:
            chosen = {
                f"{name}-{width}-{theme}": (name, width, theme)
                for name in pages
                for width in (WIDE, NARROW)
                for theme in ("light", "dark")
            }
        opened: dict[tuple[int, str], Page] = {(WIDE, "light"): page}
        for name, (which, width, theme) in chosen.items():
            if (width, theme) not in opened:
                opened[width, theme] = logged_in(browser, service, width, theme)
            page = opened[width, theme]
            page.goto(f"{service.url}{pages[which]}")
            page.wait_for_load_state("networkidle")
            page.evaluate("document.fonts.ready")
            if name == "duplicate":
                page.set_viewport_size(WITHOUT_SIDEBAR)
            page.screenshot(path=folder / f"{name}.png", full_page=everything)
            page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
        browser.close()


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    take(Path(folders[0]) if folders else ROOT / "docs" / "images", everything="--all" in sys.argv)
