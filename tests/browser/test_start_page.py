"""The start page and the docs, as somebody sees them who has just started the service."""

import re
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.browser.service import Service, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("browser")]

LONG = "x" * 255


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Of somebody who has not logged in."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(15_000)
    yield context
    context.close()


def event(topic: str = "start.page", event_id: str = "") -> dict:
    return {"topic": topic, "event_id": event_id or uuid4().hex, "source": "test", "payload": {"n": 1}}


def look_away(page: Page) -> None:
    page.mouse.move(1, 1)


def rows(page: Page) -> list[str]:
    return page.locator("#latest .id").all_inner_texts()


def count(page: Page, name: str) -> int:
    return int(page.locator(f"[data-count={name}]").inner_text().replace(",", ""))


@pytest.fixture
def opened(page: Page, service: Service) -> Page:
    """The start page, with an event in its list."""
    service.publish([event()])
    service.wait_until_stored()
    page.goto(f"{service.url}/")
    look_away(page)
    return page


def test_the_command_that_is_copied_stores_an_event_and_once_more_is_dropped(opened: Page, service: Service) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.get_by_role("button", name="Copy").click()
    expect(opened.locator("#said")).to_have_text("Copied")
    command = opened.evaluate("navigator.clipboard.readText()")
    event_id = re.findall(r'"event_id": "(\w+)"', command)[0]
    stored, dropped = count(opened, "stored"), count(opened, "duplicates")
    look_away(opened)
    for _ in range(2):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert '"status":"accepted"' in done.stdout
    expect(opened.locator("#latest .id").first).to_have_text(event_id)
    expect(opened.locator("[data-count=duplicates]")).to_have_text(f"{dropped + 1:,}")
    expect(opened.locator("[data-count=stored]")).to_have_text(f"{stored + 1:,}")


def test_all_is_well_is_said_on_the_page_and_in_its_title(opened: Page) -> None:
    expect(opened.locator("#verdict")).to_have_text("All is well", timeout=30_000)
    expect(opened).to_have_title("All is well · Event aggregator")


def test_what_arrives_is_shown_by_itself(opened: Page, service: Service) -> None:
    new = event()
    service.publish([new])
    expect(opened.locator("#latest .id").first).to_have_text(new["event_id"])


@pytest.mark.parametrize("width", [390, 1440])
def test_what_is_being_read_does_not_move_until_one_asks(opened: Page, service: Service, width: int) -> None:
    service.publish([event() for _ in range(10)])
    service.wait_until_stored()
    opened.set_viewport_size({"width": width, "height": 844})
    opened.reload()
    read = opened.locator("#latest a.row").nth(1)
    read.hover()
    before = rows(opened), read.bounding_box()
    new = event()
    service.publish([new])
    offer = opened.get_by_role("button", name="Show 1 new")
    expect(offer).to_be_visible()
    assert (rows(opened), read.bounding_box()) == before
    offer.click()
    expect(opened.locator("#latest .id").first).to_have_text(new["event_id"])
    expect(offer).to_be_hidden()


def test_what_is_selected_stays_selected(opened: Page, service: Service) -> None:
    opened.evaluate("getSelection().selectAllChildren(document.querySelector('#latest .id'))")
    selected = opened.evaluate("String(getSelection())")
    assert selected == rows(opened)[0]
    new = event()
    service.publish([new])
    expect(opened.get_by_role("button", name="Show 1 new")).to_be_visible()
    assert opened.evaluate("String(getSelection())") == selected
    opened.evaluate("getSelection().removeAllRanges()")
    expect(opened.locator("#latest .id").first).to_have_text(new["event_id"])


def asked(page: Page) -> list[str]:
    """What the page asks for from now on."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url) if "/overview" in request.url else None)
    return seen


def a_round(page: Page) -> None:
    """Waits for longer than the page does between two looks: that nothing happens cannot be awaited."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2 * int(page.locator("#overview").get_attribute("data-refresh") or 0))


def test_it_asks_for_nothing_while_paused(opened: Page, service: Service) -> None:
    opened.get_by_role("button", name="Pause").click()
    opened.wait_for_load_state("networkidle")
    seen = asked(opened)
    a_round(opened)
    assert seen == []
    new = event()
    service.publish([new])
    service.wait_until_stored()
    opened.get_by_role("button", name="Resume").click()
    expect(opened.locator("#latest .id").first).to_have_text(new["event_id"])


def test_it_asks_for_nothing_while_nobody_looks(opened: Page) -> None:
    change = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    change += " document.dispatchEvent(new Event('visibilitychange')) }"
    opened.evaluate(change, True)
    opened.wait_for_load_state("networkidle")
    seen = asked(opened)
    a_round(opened)
    assert seen == []
    with opened.expect_request("**/overview"):
        opened.evaluate(change, False)


def test_what_has_not_changed_is_not_sent_again(opened: Page) -> None:
    with opened.expect_response(lambda answer: "/overview" in answer.url and answer.status == 304):
        pass


def test_it_says_when_the_service_does_not_answer_and_when_it_does_again(opened: Page, service: Service) -> None:
    def fail(route: Route) -> None:
        # As a proxy would whose service is away; a connection that is refused would stand in the console as an error.
        route.fulfill(status=200, headers={"Content-Type": "text/html"}, body="<p>Bad gateway</p>")

    opened.route("**/overview", fail)
    expect(opened.locator("#refreshed")).to_have_text("No answer. Trying again.")
    opened.unroute("**/overview")
    expect(opened.locator("#refreshed")).to_have_text("Refreshes by itself.")


def test_it_can_be_used_by_keyboard_alone(opened: Page) -> None:
    names = []
    for _ in range(30):
        opened.keyboard.press("Tab")
        names.append(opened.evaluate("document.activeElement.innerText.trim()"))
    for name in ("Docs", "Admin", "Health", "Pause", "Copy"):
        assert name in names


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_and_the_docs_are_dark_in_the_dark(page: Page, service: Service, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path, ready in (("/", "#verdict"), ("/docs", ".opblock")):
        page.goto(f"{service.url}{path}")
        page.wait_for_selector(ready)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = max(int(part) for part in re.findall(r"\d+", colour)[:3])
        assert (brightness < 64) is (scheme == "dark"), (path, colour)


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_as_wide_as_the_screen_whatever_publishers_send(page: Page, service: Service, width: int) -> None:
    unlike_others = uuid4().hex
    service.publish([event(LONG, unlike_others + LONG[32:]), event("<script>document.title = 1</script>\u202e")])
    service.wait_until_stored()
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/")
    assert unlike_others in " ".join(rows(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page).to_have_title(re.compile("Event aggregator"))


def test_the_docs_are_as_wide_as_a_phone_and_copy_no_header_in_vain(page: Page, service: Service) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{service.url}/docs")
    expect(page.locator(".opblock-summary-path").first).to_contain_text("/publish")
    for operation in page.locator(".opblock").all():
        operation.locator(".opblock-summary").click()
        operation.locator(".responses-table").first.wait_for()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{operation.locator('.opblock-summary-path').inner_text()} is {wide} pixels wide"
    page.locator(".opblock-post").get_by_role("button", name="Execute").click()
    command = page.locator(".opblock-post .curl")
    expect(command).to_contain_text("curl -X 'POST'")
    assert "csrf" not in command.inner_text().lower()


def test_an_event_leads_to_what_was_sent(opened: Page, service: Service) -> None:
    new = event()
    service.publish([new])
    wait_for(lambda: rows(opened)[0] == new["event_id"], "the event is listed")
    opened.get_by_role("link", name=new["event_id"]).click()
    expect(opened.locator("body")).to_contain_text(new["event_id"])
    expect(opened.locator("body")).to_contain_text('"payload":{')
