"""/schema and /docs: what they say is true, and needs nobody else's host."""

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from django.test import Client
from django.urls import get_resolver
from drf_spectacular.validation import validate_schema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.conftest import event

METHODS = {"get", "post", "put", "patch", "delete", "head", "options"}


@cache
def document() -> dict[str, Any]:
    answer = Client().get("/schema", headers={"Accept": "application/vnd.oai.openapi+json"})
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    whole = Resource.from_contents(document(), default_specification=DRAFT202012)
    registry: Any = Registry().with_resource("urn:schema", whole)
    return jsonschema.Draft202012Validator(absolute(schema), registry=registry)


def absolute(schema: Any) -> Any:
    """The schema with its references into the document."""
    if isinstance(schema, dict):
        return {name: "urn:schema" + value if name == "$ref" else absolute(value) for name, value in schema.items()}
    return [absolute(value) for value in schema] if isinstance(schema, list) else schema


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield method, path, operation


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place in the document that has a schema, named."""
    for method, path, operation in operations():
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                yield f"{method} {path} {status} {kind}", content
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} {kind}", content
        for parameter in operation.get("parameters", []):
            yield f"{method} {path} {parameter['name']}", parameter


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    for where, content in bodies():
        for name, example in content.get("examples", {}).items():
            yield f"{where}: {name}", content["schema"], example["value"]
    for name, schema in document()["components"]["schemas"].items():
        for field, part in schema.get("properties", {}).items():
            for example in part.get("examples", []):
                yield f"{name}.{field}", part, example


def test_the_schema_is_openapi_3_1() -> None:
    assert document()["openapi"].startswith("3.1")
    validate_schema(document())


def test_every_address_of_the_api_is_in_the_schema() -> None:
    addresses = set()
    for pattern in get_resolver().url_patterns:
        for one in getattr(pattern, "url_patterns", []):
            view = getattr(one.callback, "view_class", None) or getattr(one.callback, "cls", None)
            if view and view.__module__.startswith("events.api."):
                addresses.add("/" + re.sub(r"<\w+:(\w+)>", r"{\1}", str(one.pattern)))
    documented = {path for _, path, _ in operations()}
    assert {"/publish", "/events", "/stats", "/batches/{batch_id}", "/health"} <= addresses
    assert addresses - {"/docs", "/schema", "/overview"} <= documented


@pytest.mark.parametrize(("path", "method"), [("/publish", "post"), ("/stats", "get")])
def test_the_main_calls_have_examples(path: str, method: str) -> None:
    assert [where for where, _, _ in examples() if where.startswith(f"{method} {path}")]


def test_every_example_is_of_its_schema() -> None:
    wrong = {
        where: error.message for where, schema, value in examples() for error in validator(schema).iter_errors(value)
    }
    assert wrong == {}


def test_every_schema_is_one() -> None:
    for where, content in bodies():
        if "schema" in content:
            jsonschema.Draft202012Validator.check_schema(content["schema"])
            assert validator(content["schema"]).is_valid(object()) in (True, False), where


@pytest.mark.parametrize("path", ["/events", "/stats", "/batches/{batch_id}", "/metrics"])
def test_what_a_key_opens_says_how_it_refuses(path: str) -> None:
    assert {"401", "403", "429"} <= document()["paths"][path]["get"]["responses"].keys()


def test_every_call_has_a_name_a_summary_and_a_tag() -> None:
    for method, path, operation in operations():
        assert operation["operationId"], (method, path)
        assert operation["summary"], (method, path)
        assert operation["tags"], (method, path)


def schema_of(path: str, method: str, status: int) -> dict[str, Any]:
    return document()["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]  # type: ignore[no-any-return]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "template", "status"),
    [
        ("/stats", "/stats", 200),
        ("/health", "/health", 200),
        ("/events", "/events", 200),
        ("/events?limit=0", "/events", 400),
        ("/batches/{batch}", "/batches/{batch_id}", 200),
        ("/batches/0", "/batches/{batch_id}", 404),
    ],
)
def test_what_is_answered_is_of_the_schema(
    path: str, template: str, status: int, client: Client, publish: Any, drain: Any
) -> None:
    batch = publish([event("1"), event("1")]).json()["batch_id"]
    drain()
    publish(event("2"))
    answer = client.get(path.format(batch=batch))
    assert answer.status_code == status
    validator(schema_of(template, "get", status)).validate(answer.json())


@pytest.mark.django_db
@pytest.mark.parametrize(("body", "status"), [(event(), 202), ({"topic": 1}, 400), (b"[", 400)])
def test_what_a_publish_answers_is_of_the_schema(body: Any, status: int, publish: Any) -> None:
    answer = publish(body)
    assert answer.status_code == status
    validator(schema_of("/publish", "post", status)).validate(answer.json())


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body",
    [event(), [event()], {"events": [event()]}, [], {"events": []}, {}, event(colour="red"), event(payload=[]), "x"],
)
def test_the_schema_and_the_service_agree_on_what_an_event_is(body: Any, publish: Any) -> None:
    schema = document()["paths"]["/publish"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert validator(schema).is_valid(body) is (publish(body).status_code == 202)


class Addresses(HTMLParser):
    """Collects what a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and tag in ("script", "link", "img", "iframe") and value:
                self.loaded.append(value)


def test_the_docs_load_nothing_from_another_host(client: Client) -> None:
    page = client.get("/docs").content.decode()
    loaded = Addresses(page).loaded
    assert len(loaded) >= 3
    for address in [*loaded, *re.findall(r"https?://[^\s\"'<>]+", page)]:
        assert urlsplit(address).hostname in (None, "testserver"), address


def test_all_that_the_docs_load_is_there(client: Client) -> None:
    for address in Addresses(client.get("/docs").content.decode()).loaded:
        if not address.startswith("data:"):
            assert client.get(address).status_code == 200, address


def test_publish_comes_first() -> None:
    assert next(operations())[:2] == ("post", "/publish")
    assert document()["tags"][0]["name"] in document()["paths"]["/publish"]["post"]["tags"]


def test_the_introduction_has_a_publish_that_works_as_it_stands(publish: Any, db: None) -> None:
    introduction = document()["info"]["description"]
    assert "curl http://testserver/publish" in introduction
    [body] = re.findall(r"-d '(.*)'", introduction)
    assert publish(body.encode()).status_code == 202


@pytest.mark.parametrize("keys", [False, True])
def test_the_introduction_says_whether_a_key_is_needed(settings: Any, keys: bool) -> None:
    from events.api.schema import introduce

    settings.REQUIRE_API_KEY = keys
    introduction = introduce({"info": {}}, None, None, None)["info"]["description"]
    assert ("Api-Key <key>" in introduction) is keys


def test_no_call_from_the_docs_has_a_header_that_the_service_does_not_ask_for(client: Client) -> None:
    for address in ("/docs", "/docs?script="):
        page = client.get(address).content.decode()
        assert "csrf" not in page.lower(), address
