"""The search of every page (Ctrl-K): events, topics, sources and batches, found exactly or by how they begin.

Each kind is looked up through an index and at most SHOWN hits of it are listed, so that the cost does not grow with the
number of rows. Nobody is shown a hit of a model that they may not view.
"""

from collections.abc import Callable, Iterator

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode
from unfold.dataclasses import SearchResult

from events.admin.filters import begins_with, is_number, status_word, with_request_id
from events.admin.site import navigation
from events.models import KEY_LENGTH, Batch, Event, Pruned, SourceTotal, TopicTotal

#: Hits of one kind that are listed.
SHOWN = 5
#: Keys that begin so and are looked at where events have expired: their keys stay, and a million may come first.
COMPARED = 10_000


def answer(request: HttpRequest) -> HttpResponse:
    """The hits as the part of a page that unfold puts under its search field."""
    words = request.GET.get("s", "").strip()
    if not words:
        return HttpResponse()
    context = {"words": words, "results": hits(request, words)}
    return TemplateResponse(request, "admin/events/search_results.html", context, headers={"HX-Trigger": "search"})


def hits(request: HttpRequest, words: str) -> list[SearchResult]:
    """What this user may view of what the words name, exact or as its beginning, and the pages of that name."""
    found: list[SearchResult] = []
    if len(words) <= KEY_LENGTH and "\0" not in words:
        for model, look_up in _KINDS:
            if request.user.has_perm(f"events.view_{model}"):
                found += look_up(words)
    pages = [item for group in navigation(request) for item in group["items"]]
    found += [
        SearchResult(title=page["title"], description="Page", link=page["link"], icon=page["icon"])
        for page in pages
        if words.casefold() in page["title"].casefold()
    ]
    return found


def _batch_by_number(words: str) -> Iterator[SearchResult]:
    if is_number(words):
        yield from map(_batch_hit, Batch.objects.filter(pk=int(words)).defer("body"))


def _batches_by_request_id(words: str) -> Iterator[SearchResult]:
    found = with_request_id(words, SHOWN)
    newest_first = Batch.objects.filter(pk__in=found).defer("body").order_by("-pk")
    yield from map(_batch_hit, newest_first[:SHOWN])


def _batch_hit(batch: Batch) -> SearchResult:
    facts = [status_word(batch.status), f"{batch.accepted_at:%Y-%m-%d %H:%M:%S}"]
    if batch.request_id:
        facts.append(f"request {batch.request_id}")
    return SearchResult(
        title=f"Batch {batch.pk}",
        description=", ".join(facts),
        link=reverse("admin:events_batch_change", args=[batch.pk]),
        icon="inbox",
    )


def _events(words: str) -> Iterator[SearchResult]:
    # The index of the key starts with the topic, so the id is looked up under each topic that there is.
    known = Event.objects.filter(topic__in=TopicTotal.objects.values("topic"))
    found = _listed(known.filter(event_id=words)) or _listed(known.filter(**begins_with("event_id", words)))
    for event in found[:SHOWN]:
        yield SearchResult(
            title=event.event_id,
            description=f"Event of {event.topic}, {event.received_at:%Y-%m-%d %H:%M:%S}",
            link=reverse("admin:events_event_change", args=[event.pk]),
            icon="event_note",
        )
    if len(found) > SHOWN:
        yield SearchResult(
            title=f"More events: {words}…",
            description="The list of events, filtered by this id",
            link=_list("event", event_id=words),
            icon="manage_search",
        )


def _listed(rows: QuerySet[Event]) -> list[Event]:
    """One more than is shown; in the order of the index, because another would sort all that match."""
    rows = rows.order_by()
    if expired := Pruned.objects.listed_after():
        some = rows.values_list("pk", flat=True)[:COMPARED]
        rows = Event.objects.filter(pk__in=[pk for pk in some if pk > expired][: SHOWN + 1])
    return list(rows.defer("payload")[: SHOWN + 1])


def _topics(words: str) -> Iterator[SearchResult]:
    for total in TopicTotal.objects.filter(**begins_with("topic", words)).order_by("topic")[:SHOWN]:
        yield SearchResult(
            title=total.topic,
            description=f"Topic, {total.unique:,} stored, {total.duplicates:,} dropped",
            link=_list("topictotal", q=total.topic),
            icon="topic",
        )


def _sources(words: str) -> Iterator[SearchResult]:
    for total in SourceTotal.objects.filter(**begins_with("source", words)).order_by("source")[:SHOWN]:
        yield SearchResult(
            title=total.source,
            description=f"Source, {total.unique:,} stored, {total.duplicates:,} dropped",
            link=_list("sourcetotal", q=total.source),
            icon="sensors",
        )


def _list(model: str, **query: str) -> str:
    return f"{reverse(f'admin:events_{model}_changelist')}?{urlencode(query)}"


#: The model that a user must be allowed to view, and what looks it up.
_KINDS: tuple[tuple[str, Callable[[str], Iterator[SearchResult]]], ...] = (
    ("batch", _batch_by_number),
    ("event", _events),
    ("topictotal", _topics),
    ("sourcetotal", _sources),
    ("batch", _batches_by_request_id),
)
