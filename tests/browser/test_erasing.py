"""Erasing a payload and searching by one, as an operator does it."""

from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from tests.browser.service import Service

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("browser")]

WIDTHS = pytest.mark.parametrize("width", [390, 1440])


def published(service: Service) -> str:
    """Stores a new event; returns a value that only its payload has."""
    value = uuid4().hex
    service.publish([{"topic": "people", "event_id": value, "source": "shop", "payload": {"user": {"name": value}}}])
    service.wait_until_stored()
    return value


@WIDTHS
def test_a_payload_is_found_and_erased(page: Page, service: Service, width: int) -> None:
    value = published(service)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/admin/events/event/")
    if width == 390:
        page.get_by_text("More filters").click()
    page.get_by_label("Value in the payload").fill(f"payload.user.name={value}")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.locator(".searched")).to_contain_text("manage.py index payload.user.name makes it fast")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#result_list a.key").click()
    page.get_by_role("link", name="Erase payload").click()
    expect(page.get_by_role("heading", name="Erase the payload of this event?")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Erase for good").click()
    expect(page.get_by_text("The payload is erased.")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("by admin (admin)")
    expect(page.get_by_text("Erased for good.")).to_be_visible()
    expect(page.locator(".payload")).to_have_count(0)
    page.goto(f"{service.url}/admin/events/erasure/?event_id={value}")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@WIDTHS
def test_who_thinks_again_keeps_it(page: Page, service: Service, width: int) -> None:
    value = published(service)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/admin/events/event/?event_id={value}")
    page.locator("#result_list a.key").click()
    page.get_by_role("link", name="Erase payload").click()
    page.get_by_role("link", name="Keep it").click()
    expect(page.locator(".payload")).to_contain_text(value)
