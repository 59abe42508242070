"""What an operator does in the admin beside reading lists: search with Ctrl-K, copy a key, see what comes in."""

import re
import subprocess
from uuid import uuid4

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.service import Service

# One service for all of them, where pytest-xdist shares tests out by group.
pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("browser")]

WIDTHS = pytest.mark.parametrize("width", [390, 1440])


def publish(service: Service, count: int, topic: str = "admin.test") -> str:
    """Stores new events; returns how their ids begin."""
    run = f"Run-{uuid4().hex[:8]}"
    service.publish([{"topic": topic, "event_id": f"{run}-{n}", "source": "shop"} for n in range(count)])
    service.wait_until_stored()
    return run


def hide(page: Page, hidden: bool) -> None:
    page.evaluate(
        "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


# --- Ctrl-K -----------------------------------------------------------------------------------------------------------


def test_ctrl_k_finds_an_event_and_opens_it(page: Page, service: Service) -> None:
    run = publish(service, 2)
    page.goto(f"{service.url}/admin/")
    page.keyboard.press("Control+k")
    field = page.locator("#search-input-command")
    expect(field).to_be_focused()
    field.press_sequentially(f"{run}-1")
    expect(page.locator("#command-results-list li")).to_have_count(1)
    expect(page.locator("#command-results-list")).to_contain_text("admin.test")
    field.press("Enter")
    expect(page.locator(".row-title")).to_have_text(f"{run}-1")


@WIDTHS
def test_ctrl_k_says_that_it_found_nothing(page: Page, service: Service, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/admin/events/event/")
    page.keyboard.press("Control+k")
    page.locator("#search-input-command").press_sequentially("y" * 60)
    expect(page.locator("#command-results-list")).to_contain_text("Nothing found for")
    expect(page.locator("#command-results-list")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_menu_has_a_button_for_the_search(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/admin/")
    page.get_by_role("button", name=re.compile("Find an event")).click()
    expect(page.locator("#search-input-command")).to_be_focused()


# --- A new key --------------------------------------------------------------------------------------------------------


def test_a_new_key_is_copied_with_a_command_that_works(context: BrowserContext, page: Page, service: Service) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{service.url}/admin/events/apikey/add/")
    page.get_by_label("Name").fill("copied")
    page.get_by_label("May publish").check()
    page.get_by_role("button", name="Save", exact=True).click()
    key = page.locator("#new-key").inner_text()
    first, second = page.locator("button[data-copy]").all()
    first.click()
    expect(first).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == key
    second.click()
    expect(second).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    assert key in command
    answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert '"status":"accepted"' in answer.stdout


def test_without_a_clipboard_the_key_is_selected(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/admin/events/apikey/add/")
    page.get_by_label("Name").fill("selected")
    page.get_by_label("May read").check()
    page.get_by_role("button", name="Save", exact=True).click()
    # As in a browser that came over http from another machine.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator("button[data-copy]").first.click()
    expect(page.locator("button[data-copy]").first).to_have_text("Selected: press Ctrl-C")
    assert page.evaluate("getSelection().toString()").strip() == page.locator("#new-key").inner_text()


# --- What comes in ----------------------------------------------------------------------------------------------------


@WIDTHS
def test_a_list_offers_what_came_in_and_moves_nothing(page: Page, service: Service, width: int) -> None:
    topic = f"offered.{uuid4().hex[:8]}"
    publish(service, 60, topic)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/admin/events/event/?topic={topic}")
    rows = page.locator("#result_list tbody tr")
    first = rows.first.inner_text()
    page.mouse.wheel(0, 400)
    page.wait_for_function("scrollY > 0")
    before = rows.nth(9).bounding_box()
    publish(service, 12, topic)
    publish(service, 3, "of.another.topic")
    offer = page.locator("#newer")
    expect(offer).to_have_text("12 new")
    expect(offer).to_be_in_viewport()
    assert rows.nth(9).bounding_box() == before
    assert rows.first.inner_text() == first
    offer.click()
    page.wait_for_load_state()
    expect(offer).to_be_hidden()
    assert rows.first.inner_text() != first
    assert f"topic={topic}" in page.url


def test_a_hidden_list_asks_for_nothing_until_it_is_seen_again(page: Page, service: Service) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "newer_than" in request.url else None)
    page.goto(f"{service.url}/admin/events/event/")
    pause = int(page.locator("#newer").get_attribute("data-milliseconds") or 0)
    assert pause > 0
    with page.expect_request("**newer_than**"):
        pass
    hide(page, True)
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.wait_for_timeout(2 * pause)
    assert asked == []
    with page.expect_request("**newer_than**"):
        hide(page, False)


# --- The dashboard ----------------------------------------------------------------------------------------------------


def test_a_young_service_draws_no_empty_hour_and_round_times(page: Page, service: Service) -> None:
    publish(service, 5)
    page.goto(f"{service.url}/admin/")
    chart = "Chart.getChart('chart-events')"
    labels = page.evaluate(f"{chart}.data.labels")
    assert 15 <= len(labels) <= 60
    drawn = page.evaluate(f"{chart}.data.datasets.map((set) => set.data.length)")
    assert set(drawn) == {len(labels)}
    assert page.evaluate(f"{chart}.data.datasets[0].data[0] === 0") or len(labels) == 60
    for name in ("events", "share", "delay"):
        ticks = page.evaluate(f"Chart.getChart('chart-{name}').scales.x.ticks.map((tick) => tick.label)")
        minutes = [int(label[-2:]) for label in ticks]
        assert ticks
        assert all(minute % 5 == 0 for minute in minutes), ticks
