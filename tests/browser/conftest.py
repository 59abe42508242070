"""One service and one browser for all tests here; every page is watched for errors and for calls to other hosts."""

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt")

from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from tests.browser.chromium import executable, launch, may_be_installed
from tests.browser.service import Service, running

# Pages ask every two or five seconds, and less often after an error.
expect.set_options(timeout=30_000)

NO_CHROMIUM = "There is no Chromium: install the system's package, or run `playwright install chromium`."


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not may_be_installed():
        pytest.skip(NO_CHROMIUM)
    with ExitStack() as stack:
        try:
            playwright = stack.enter_context(sync_playwright())
        except (Error, OSError) as error:
            pytest.skip(f"Playwright's driver does not run here: {error}")
        path = executable(playwright)
        if path is None:
            pytest.skip(NO_CHROMIUM)
        browser = launch(playwright, path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(browser: Browser) -> Iterator[Service]:
    # After the browser: without one there is no reason to start a service.
    with running() as service:
        yield service


@pytest.fixture(scope="session")
def session(browser: Browser, service: Service) -> dict:
    """Cookies of somebody who has logged in through the form."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{service.url}/admin/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", service.password)
    page.click("button[type=submit]")
    page.wait_for_selector("#dashboard")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def context(browser: Browser, session: dict) -> Iterator[BrowserContext]:
    context = browser.new_context(storage_state=session, viewport={"width": 1440, "height": 900})
    context.set_default_timeout(15_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, service: Service) -> Iterator[Page]:
    """A page of somebody who is logged in. Fails its test on a console error and on a request to another host."""
    page = context.new_page()
    complaints: list[str] = []
    ours = {urlsplit(service.url).hostname}

    def console(message) -> None:
        if message.type == "error":
            complaints.append(f"console: {message.text} ({message.location.get('url')})")

    def request(asked) -> None:
        parts = urlsplit(asked.url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname not in ours:
            complaints.append(f"request to another host: {asked.url}")

    page.on("console", console)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", request)
    yield page
    assert complaints == []
