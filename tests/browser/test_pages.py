"""What a person does with the service, done in a browser."""

import json
import re
from itertools import count
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from tests.browser.service import Service, manage, wait_for

# One service for all of them, where pytest-xdist shares tests out by group.
pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("browser")]

_numbers = count(1)


def events(number: int, topic: str = "order.placed") -> list[dict]:
    """New events that no other test publishes."""
    run = uuid4().hex[:8]
    return [
        {"topic": topic, "event_id": f"{run}-{n}", "source": "shop", "payload": {"order_id": n}} for n in range(number)
    ]


def figure(page: Page, name: str) -> int:
    return int(page.locator(f'[data-figure="{name}"]').inner_text().replace(",", ""))


def test_the_figures_move_while_events_are_published(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/admin/")
    before = figure(page, "unique"), figure(page, "duplicates")
    batch = events(50)
    service.publish(batch + batch[:10])
    page.wait_for_function(
        "([unique, duplicates]) => document.querySelector('[data-figure=unique]').innerText.replace(',', '') == unique"
        " && document.querySelector('[data-figure=duplicates]').innerText.replace(',', '') == duplicates",
        arg=[str(before[0] + 50), str(before[1] + 10)],
    )
    bars = page.evaluate("Chart.getChart('chart-events').data.datasets.map((set) => set.data.at(-1) + set.data.at(-2))")
    assert bars[0] >= 50


def test_all_is_well_once_every_part_has_been_heard_of(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/admin/")
    expect(page.locator("#verdict")).to_have_text("All is well", timeout=30_000)
    expect(page).to_have_title(re.compile("All is well"))


def test_a_hidden_tab_asks_for_nothing(page: Page, service: Service) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/admin/live" in request.url else None)
    page.goto(f"{service.url}/admin/")
    with page.expect_request("**/admin/live*"):
        pass
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    # Whatever was on its way has come back, and a whole round has passed without another.
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.wait_for_timeout(2 * int(page.locator("#dashboard").get_attribute("data-refresh") or 0))
    assert asked == []


def test_an_event_is_found_and_read(page: Page, service: Service) -> None:
    [wanted] = events(1, topic="needle")
    service.publish([*events(20), wanted])
    service.wait_until_stored()
    page.goto(f"{service.url}/admin/events/event/")
    page.get_by_label("Event id").fill(wanted["event_id"])
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name=wanted["event_id"]).click()
    expect(page.locator(".row-title")).to_have_text(wanted["event_id"])
    expect(page.locator(".payload")).to_contain_text('"order_id": 0')
    page.get_by_role("link", name="needle").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_an_export_has_what_was_filtered(page: Page, service: Service) -> None:
    service.publish(events(3, topic="export me"))
    service.wait_until_stored()
    page.goto(f"{service.url}/admin/events/event/?topic=export+me")
    with page.expect_download() as download:
        page.get_by_role("link", name="NDJSON", exact=True).click()
    lines = download.value.path().read_text().splitlines()
    assert [json.loads(line)["topic"] for line in lines] == ["export me"] * 3


def test_a_duplicate_is_opened_and_says_what_differs(page: Page, service: Service) -> None:
    [first] = events(1)
    service.publish([first])
    service.publish([{**first, "source": "impostor", "payload": {"order_id": 7}}])
    service.wait_until_stored()
    page.goto(f"{service.url}/admin/events/duplicate/")
    page.get_by_label("Payload").select_option(label="differs from the stored one")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name=first["event_id"]).click()
    expect(page.locator(".diff-left")).to_have_text('  "order_id": 0')
    expect(page.locator(".diff-right")).to_have_text('  "order_id": 7')


def test_a_dead_letter_is_replayed(page: Page, service: Service) -> None:
    # Nothing that a publish accepts fails for good, so one is made by hand: a batch that was given up for no reason.
    [event] = events(1, topic="revived")
    body = json.dumps([event])
    manage(
        service.data,
        "shell",
        "-c",
        "from django.utils.timezone import now; from events.models import Batch; "
        f"body = {body!r}.encode(); "
        "Batch.objects.create(accepted_at=now(), next_attempt_at=now(), received=1, body=body, size=len(body), "
        "status='failed', attempts=5, error='the disk was full')",
    )
    page.goto(f"{service.url}/admin/")
    page.get_by_role("link", name="1 to replay or discard").click()
    page.locator("#result_list a.key").first.click()
    expect(page.locator(".error-box")).to_contain_text("the disk was full")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("is pending again")).to_be_visible()
    service.wait_until_stored()
    page.goto(f"{service.url}/admin/events/event/?topic=revived")
    expect(page.get_by_role("link", name=event["event_id"])).to_be_visible()


def test_pages_of_events_lead_on_and_back(page: Page, service: Service) -> None:
    service.publish(events(120, topic="paged"))
    service.wait_until_stored()
    page.goto(f"{service.url}/admin/events/event/?topic=paged")
    rows = page.locator("#result_list tbody tr")
    for word, number in (("Older", 50), ("Older", 20), ("Newer", 50), ("Newer", 50)):
        page.get_by_role("link", name=word).click()
        expect(rows).to_have_count(number)
    expect(page.get_by_role("link", name="Newer")).to_have_count(0)


def test_the_docs_publish_an_event(page: Page, service: Service) -> None:
    event = {"topic": "from.docs", "event_id": uuid4().hex, "source": "docs", "payload": {}}
    page.goto(f"{service.url}/docs")
    operation = page.locator(".opblock-post", has_text="/publish")
    operation.locator(".opblock-summary").click()
    operation.locator("textarea.body-param__text").fill(json.dumps(event))
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("202")
    wait_for(lambda: "from.docs" in service.stats()["topics"], "what the docs published is stored")


def test_flower_shows_the_task(page: Page, service: Service) -> None:
    service.publish(events(5))
    service.wait_until_stored()
    page.goto(f"{service.flower_url}/tasks")
    task = page.get_by_role("cell", name="events.process_inbox").first
    # Flower reads what workers report while it is there; the page itself does not refresh.
    wait_for(lambda: page.reload() and task.count() > 0, "Flower has heard of the task")
    expect(task).to_be_visible()
    expect(page.get_by_role("cell", name=" new, ").first).to_contain_text("dropped")


@pytest.mark.parametrize("width", [390, 1440])
def test_no_page_is_wider_than_the_screen(page: Page, service: Service, width: int) -> None:
    long = "x" * 255
    service.publish(
        [{"topic": f"{long[:-6]}{next(_numbers):06}", "event_id": long, "source": long, "payload": {long: long}}]
    )
    service.wait_until_stored()
    page.set_viewport_size({"width": width, "height": 844})
    for address in (
        "",
        "events/event/",
        "events/duplicate/",
        "events/batch/",
        "events/topictotal/",
        "events/sourcetotal/",
    ):
        page.goto(f"{service.url}/admin/{address}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{address} is {wide} pixels wide"
    page.goto(f"{service.url}/admin/events/event/")
    page.locator("#result_list a.key").first.click()
    page.wait_for_selector(".payload")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
