"""Who is calling behind proxies: right addresses of all forms in use, and nothing that a stranger can make up."""

import ipaddress
import logging
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from aggregator_project import gunicorn
from aggregator_project.proxies import TrustedProxies, client_network, read_forwarded, read_list, read_node
from tests.server import serving


def behind(settings: Settings) -> TrustedProxies:
    """The middleware behind 10.0.0.0/8 and 2001:db8::/32."""
    settings.TRUSTED_PROXIES = ["10.0.0.0/8", "2001:db8::/32"]
    return TrustedProxies(lambda _: HttpResponse())


def seen(proxies: TrustedProxies, peer: str = "10.0.0.2", **headers: str | None) -> HttpRequest:
    """The request as the service sees it.

    Args:
        proxies: the middleware.
        peer: who connects.
        headers: X_FORWARDED_FOR and the like; None for one that is not sent.
    """
    request = HttpRequest()
    request.META = {"REMOTE_ADDR": peer, "wsgi.url_scheme": "http"}
    request.META |= {f"HTTP_{name}": value for name, value in headers.items() if value is not None}
    proxies(request)
    return request


def address(proxies: TrustedProxies, peer: str = "10.0.0.2", **headers: str | None) -> Any:
    return seen(proxies, peer, **headers).META["REMOTE_ADDR"]


def scheme(proxies: TrustedProxies, peer: str = "10.0.0.2", **headers: str | None) -> Any:
    return seen(proxies, peer, **headers).META["wsgi.url_scheme"]


# --- X-Forwarded-For --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.2", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.2", "1.1.1.1, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.2", "192.0.2.1, 10.0.0.3", "192.0.2.1"),
        ("::ffff:10.0.0.2", "192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db9::1", "2001:db9::1"),
        ("10.0.0.2", "::ffff:192.0.2.1", "192.0.2.1"),
        ("10.0.0.2", "", "10.0.0.2"),
        ("10.0.0.2", None, "10.0.0.2"),
        ("192.0.2.9", "127.0.0.1", "192.0.2.9"),
        ("", "127.0.0.1", ""),
    ],
)
def test_the_address_is_the_last_that_is_no_proxy_of_ours(
    settings: Settings, peer: str, forwarded: str | None, client: str
) -> None:
    request = seen(behind(settings), peer, X_FORWARDED_FOR=forwarded)
    assert request.META["REMOTE_ADDR"] == client
    assert "HTTP_X_FORWARDED_FOR" not in request.META


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.1:40001", "203.0.113.1"),
        ("[2001:db9::7]:443", "2001:db9::7"),
        ("[2001:db9::7]", "2001:db9::7"),
        ("2001:DB9:0::7", "2001:db9::7"),
        ('"[2001:db9::7]:443"', "2001:db9::7"),
        ('"203.0.113.1"', "203.0.113.1"),
        ("203.0.113.1, 10.0.0.3:5000", "203.0.113.1"),
        ("203.0.113.1, [2001:db8::1]:5000", "203.0.113.1"),
        ("203.0.113.1,", "203.0.113.1"),
        (", ,203.0.113.1 , ,", "203.0.113.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("203.0.113.1:_port", "203.0.113.1"),
    ],
)
def test_ports_brackets_quotes_and_empty_elements_hide_no_client(
    settings: Settings, forwarded: str, client: str
) -> None:
    assert address(behind(settings), X_FORWARDED_FOR=forwarded) == client


def test_clients_inside_the_trusted_network_are_told_apart(settings: Settings) -> None:
    proxies = behind(settings)
    assert [address(proxies, X_FORWARDED_FOR=f"10.1.0.{n}, 10.0.0.3") for n in (1, 2)] == ["10.1.0.1", "10.1.0.2"]


@pytest.mark.parametrize(
    "forwarded",
    [
        "nonsense",
        "unknown",
        "_hidden",
        "192.0.2.1, nonsense",
        "192.0.2.1, unknown",
        "1.2.3.4.5",
        "[192.0.2.1]",
        "١.2.3.4",
    ],
)
def test_what_cannot_be_read_counts_as_the_proxy(settings: Settings, forwarded: str) -> None:
    assert address(behind(settings), X_FORWARDED_FOR=forwarded) == "10.0.0.2"


def test_what_cannot_be_read_counts_as_the_proxy_that_said_it(settings: Settings) -> None:
    assert address(behind(settings), X_FORWARDED_FOR="192.0.2.1, unknown, 10.0.0.3") == "10.0.0.3"


def test_it_is_said_once_and_repeats_nothing_of_it(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    proxies = behind(settings)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            address(proxies, X_FORWARDED_FOR="nonsense")
    [line] = [record.getMessage() for record in caplog.records]
    assert "X-Forwarded-For" in line
    assert "10.0.0.2" in line
    assert "nonsense" not in line


def test_what_can_be_read_is_not_worth_a_line(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    proxies = behind(settings)
    address(proxies, X_FORWARDED_FOR="nonsense, 192.0.2.1")
    address(proxies, X_FORWARDED_PROTO="https")
    address(proxies, "192.0.2.1", X_FORWARDED_FOR="nonsense")
    assert caplog.records == []


def test_several_header_lines_are_one_list(tmp_path: Path) -> None:
    """The real server's log says who published."""
    with serving(tmp_path, TRUSTED_PROXIES="127.0.0.1") as server:
        body = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1\r\n"
        lines = b"X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 203.0.113.1:40001\r\nX-Forwarded-For: 127.0.0.1\r\n"
        assert b" 400 " in server.say(body + lines + b"Connection: close\r\n\r\n[")
        [refused] = [line for line in server.log.splitlines() if "publish refused" in line]
    assert "203.0.113.1" in refused
    assert "198.51.100.7" not in refused


# --- Forwarded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=192.0.2.1;Proto=https;by=10.0.0.2", "192.0.2.1"),
        ('for="192.0.2.1:40001"', "192.0.2.1"),
        ('for="[2001:db9::7]:4711"', "2001:db9::7"),
        ('for="\\[2001:db9::7\\]"', "2001:db9::7"),
        ('for=1.1.1.1, for=192.0.2.1;host="a, for=1.2.3.4", for=10.0.0.3', "192.0.2.1"),
        ("for=192.0.2.1 ; proto=https , for=10.0.0.3 ,", "192.0.2.1"),
        ("for=192.0.2.1;;proto=http;", "192.0.2.1"),
        ("for=unknown, for=192.0.2.1", "192.0.2.1"),
        ("for=192.0.2.1, for=unknown", "10.0.0.2"),
        ("for=192.0.2.1, for=_hidden", "10.0.0.2"),
        ("for=192.0.2.1, proto=https", "10.0.0.2"),
        # Half of a quoted string may be a stranger's: nothing of such a header counts.
        ('for="1.1.1.1, for=192.0.2.1', "10.0.0.2"),
        ('for=1.1.1.1;x=", for="[2001:db9::7]:99"', "10.0.0.2"),
        ("for=1.1.1.1;for=192.0.2.1", "10.0.0.2"),
        ("for 192.0.2.1", "10.0.0.2"),
        ("192.0.2.1", "10.0.0.2"),
    ],
)
def test_forwarded_is_read_as_its_rfc_writes_it(settings: Settings, forwarded: str, client: str) -> None:
    request = seen(behind(settings), FORWARDED=forwarded)
    assert request.META["REMOTE_ADDR"] == client
    assert "HTTP_FORWARDED" not in request.META


def test_a_stranger_has_no_say_in_forwarded(settings: Settings) -> None:
    request = seen(behind(settings), "192.0.2.9", FORWARDED="for=1.1.1.1;proto=https")
    assert (request.META["REMOTE_ADDR"], request.META["wsgi.url_scheme"]) == ("192.0.2.9", "http")
    assert "HTTP_FORWARDED" not in request.META


def test_where_both_headers_agree_they_count(settings: Settings) -> None:
    both = {"X_FORWARDED_FOR": "192.0.2.1", "FORWARDED": 'for="192.0.2.1:99"'}
    assert address(behind(settings), **both) == "192.0.2.1"


@pytest.mark.parametrize(
    "headers",
    [
        # The proxy sets X-Forwarded-For and passes on a stranger's Forwarded, and the other way round.
        {"X_FORWARDED_FOR": "192.0.2.1", "FORWARDED": "for=1.1.1.1"},
        {"X_FORWARDED_FOR": "1.1.1.1", "FORWARDED": "for=192.0.2.1"},
        # It sets nothing but the scheme in one of them.
        {"X_FORWARDED_PROTO": "https", "FORWARDED": "for=1.1.1.1"},
        {"X_FORWARDED_FOR": "1.1.1.1", "FORWARDED": "proto=https"},
    ],
)
def test_nobody_chooses_an_address_by_the_header_that_a_proxy_does_not_set(
    settings: Settings, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert address(behind(settings), **headers) == "10.0.0.2"
    assert "different clients" in caplog.text


# --- The scheme -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "said", "found"),
    [
        ("10.0.0.2", "https", "https"),
        ("10.0.0.2", "HTTPS ", "https"),
        ("10.0.0.2", '"https",', "https"),
        ("10.0.0.2", "wss", "http"),
        ("10.0.0.2", None, "http"),
        ("192.0.2.9", "https", "http"),
    ],
)
def test_only_a_trusted_proxy_says_that_it_was_https(settings: Settings, peer: str, said: str, found: str) -> None:
    request = seen(behind(settings), peer, X_FORWARDED_FOR="192.0.2.1", X_FORWARDED_PROTO=said)
    assert request.META["wsgi.url_scheme"] == found
    assert "HTTP_X_FORWARDED_PROTO" not in request.META


@pytest.mark.parametrize(
    ("forwarded", "proto", "found"),
    [
        # TLS ends at the outermost of two, and each adds what it sees.
        ("192.0.2.1, 10.0.0.3", "https,http", "https"),
        # The outermost one says no address.
        ("10.0.0.3", "https, http", "https"),
        # The inner one passes on what the outer one says.
        ("192.0.2.1, 10.0.0.3", "https", "https"),
        # TLS between the two only.
        ("192.0.2.1, 10.0.0.3", "http, https", "http"),
        # What stands before it a stranger said.
        ("192.0.2.1", "https, http", "http"),
        ("1.1.1.1, 192.0.2.1, 10.0.0.3", "https, http, https", "http"),
    ],
)
def test_of_several_schemes_the_outermost_trusted_proxys_counts(
    settings: Settings, forwarded: str, proto: str, found: str
) -> None:
    assert scheme(behind(settings), X_FORWARDED_FOR=forwarded, X_FORWARDED_PROTO=proto) == found
    addresses, protos = forwarded.split(","), proto.split(",")
    if len(addresses) == len(protos):
        elements = ",".join(f"for={a.strip()};proto={p.strip()}" for a, p in zip(addresses, protos, strict=True))
        assert scheme(behind(settings), FORWARDED=elements) == found


@pytest.mark.parametrize(("proto", "found"), [("https,http", "https"), ("http, https", "http")])
def test_where_no_proxy_says_an_address_the_first_scheme_counts(settings: Settings, proto: str, found: str) -> None:
    assert scheme(behind(settings), X_FORWARDED_PROTO=proto) == found
    assert scheme(behind(settings), "192.0.2.9", X_FORWARDED_PROTO=proto) == "http"


@pytest.mark.parametrize(("one", "other"), [("https", "http"), ("http", "https")])
def test_schemes_that_differ_are_not_https(settings: Settings, one: str, other: str) -> None:
    headers = {"X_FORWARDED_FOR": "192.0.2.1", "X_FORWARDED_PROTO": one, "FORWARDED": f"for=192.0.2.1;proto={other}"}
    assert scheme(behind(settings), **headers) == "http"


# --- Whatever is sent -------------------------------------------------------------------------------------------------

_ADDRESSES = st.ip_addresses()
_NOISE = st.text(st.sampled_from('0123456789abcdef.:[]",;= \t\\%_forp'), max_size=40)


@st.composite
def _written(draw: st.DrawFn, addresses: st.SearchStrategy[Any] = _ADDRESSES) -> tuple[Any, str]:
    """An address and one of the ways in which a proxy may write it."""
    address = draw(addresses)
    forms = (
        [f"[{address}]", f"[{address}]:443", str(address)] if address.version == 6 else [f"{address}", f"{address}:1"]
    )
    return address, draw(st.sampled_from(forms))


@hypothesis_settings(deadline=None)
@given(_written(), _NOISE, st.sampled_from(["{}", '"{}"', " {} ", "{},"]))
def test_what_a_proxy_adds_is_found_behind_whatever_stands_before_it(written: Any, noise: str, form: str) -> None:
    address, text = written
    found = read_node(read_list(f"{noise},{form.format(text)}")[-1])
    assert found == (getattr(address, "ipv4_mapped", None) or address)


@hypothesis_settings(deadline=None)
@given(st.lists(_written(), min_size=1, max_size=4), st.sampled_from([",", ", ", " , ", ",,"]))
def test_every_forwarded_that_keeps_to_the_grammar_is_read(written: Any, comma: str) -> None:
    hops = read_forwarded(comma.join(f'for="{text}";proto=https' for _, text in written))
    assert [hop.address for hop in hops] == [getattr(a, "ipv4_mapped", None) or a for a, _ in written]
    assert {hop.scheme for hop in hops} == {"https"}


@hypothesis_settings(deadline=None)
@given(_NOISE, _written())
def test_a_stranger_before_the_proxys_own_element_never_becomes_another_address(noise: str, written: Any) -> None:
    own, text = written
    last = read_forwarded(f'{noise},for="{text}"')[-1]
    assert last.address in (None, getattr(own, "ipv4_mapped", None) or own)


@hypothesis_settings(deadline=None)
@given(_NOISE, _NOISE)
def test_nothing_is_an_error(x_forwarded_for: str, forwarded: str) -> None:
    with override_settings(TRUSTED_PROXIES=["10.0.0.0/8"]):
        proxies = TrustedProxies(lambda _: HttpResponse())
    request = seen(proxies, X_FORWARDED_FOR=x_forwarded_for, X_FORWARDED_PROTO=forwarded, FORWARDED=forwarded)
    ipaddress.ip_address(request.META["REMOTE_ADDR"])


# --- Who is counted ---------------------------------------------------------------------------------------------------


def test_gunicorn_itself_believes_nobody() -> None:
    assert gunicorn.forwarded_allow_ips == ""


@pytest.mark.parametrize(
    ("address", "network"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::"), ("::ffff:192.0.2.1", "::ffff:192.0.2.1")],
)
def test_who_is_counted(address: str, network: str) -> None:
    request = HttpRequest()
    request.META["REMOTE_ADDR"] = address
    assert client_network(request) == network
