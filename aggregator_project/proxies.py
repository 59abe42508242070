"""Who is calling, also behind proxies: what TRUSTED_PROXIES say in X-Forwarded-For, X-Forwarded-Proto and Forwarded.

Reads the headers as RFC 7239 and common use write them. What cannot be read counts as the proxy that sent it.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Bits of an IPv6 address that say whose it is; the rest a client chooses itself (RFC 6177).
IPV6_NETWORK_BITS = 64

#: RFC 7239 section 6: an address, and perhaps a port. Azure's Application Gateway adds the port to X-Forwarded-For too.
_PORT = r"(?::(?:\d{0,5}|_[\w.-]+))?"
_NODE = re.compile(rf"\[([^\[\]]*)\]{_PORT}|([^:\[\]]*){_PORT}|([^\[\]]*)", re.ASCII)

#: RFC 7239 section 4: name=value, where the value is a token or a quoted string (RFC 9110 section 5.6).
_PAIR = re.compile(r"[ \t]*([\w!#$%&'*+.^`|~-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([\w!#$%&'*+.^`|~:\[\]-]+))[ \t]*", re.ASCII)


class Hop(NamedTuple):
    """What one proxy says of whoever connected to it. None is what it does not say, or what cannot be read."""

    address: Address | None
    scheme: str | None


class Caller(NamedTuple):
    """What all proxies together say: who called the outermost one that is trusted, and by which scheme."""

    address: Address
    scheme: str | None
    #: Whether everything that was needed to know the address could be read.
    readable: bool


class TrustedProxies:
    """Django middleware, in MIDDLEWARE only where there are trusted proxies.

    Sets REMOTE_ADDR to the last address that is no trusted proxy, since what stands before it is only what a stranger
    said, and the scheme to what the outermost trusted proxy says of its side. From others the headers are dropped.

    A proxy may set X-Forwarded-* and pass on a Forwarded that a stranger made up, or the other way round, and the
    request does not show which. So neither wins: where both are there, they have to name the same address, or the
    request counts as the proxy's, and it is https only if none of them says http.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.networks = [ipaddress.ip_network(network) for network in settings.TRUSTED_PROXIES]
        self.warned = False

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        meta = request.META
        x_for = meta.pop("HTTP_X_FORWARDED_FOR", "")
        x_proto = meta.pop("HTTP_X_FORWARDED_PROTO", "")
        forwarded = meta.pop("HTTP_FORWARDED", "")
        peer = read_node(meta.get("REMOTE_ADDR", ""))
        if peer is not None and self._trusts(peer):
            callers = []
            if x_for or x_proto:
                callers.append(self._find(peer, read_x_forwarded(x_for), read_list(x_proto)))
            if forwarded:
                hops = read_forwarded(forwarded)
                callers.append(self._find(peer, [hop.address for hop in hops], [hop.scheme for hop in hops]))
            self._apply(request, peer, callers)
        return self.get_response(request)

    def _apply(self, request: HttpRequest, peer: Address, callers: Sequence[Caller]) -> None:
        addresses = {caller.address for caller in callers} or {peer}
        agreed = len(addresses) == 1
        schemes = {caller.scheme for caller in callers if caller.scheme}
        request.META["REMOTE_ADDR"] = str(addresses.pop() if agreed else peer)
        request.META["wsgi.url_scheme"] = "https" if schemes == {"https"} else "http"
        if not agreed:
            self._warn(peer, "X-Forwarded-For and Forwarded name different clients: let the proxy remove one of them")
        elif not all(caller.readable for caller in callers):
            self._warn(peer, "an address in X-Forwarded-For or Forwarded cannot be read")

    def _find(self, peer: Address, said: Sequence[Address | None], schemes: Sequence[str | None]) -> Caller:
        """Goes from the nearest proxy outwards as long as it meets trusted ones.

        Args:
            peer: the proxy that connected to us.
            said: what each proxy says of its client, the nearest proxy last.
            schemes: the same of the scheme. Some proxies pass on only what the one before them said.
        """
        caller, readable = peer, True
        # How many trusted proxies there are beyond the one that connected to us.
        depth = 0
        for address in reversed(said):
            if address is None:
                readable = False
                break
            caller = address
            if not self._trusts(address):
                break
            depth += 1
        # A proxy that says no address may have added its scheme all the same, and of one list nobody knows how many of
        # them are trusted. The first one counts: who made it up misleads nobody but himself about his connection, and
        # without it a client of the outermost proxy would be sent to https for ever.
        outermost = max(0, len(schemes) - 1 - depth) if said else 0
        scheme = schemes[outermost] if schemes else None
        return Caller(caller, scheme, readable)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _warn(self, peer: Address, what: str) -> None:
        if not self.warned:
            self.warned = True
            log.warning("%s; such requests count as the proxy's own, %s. This is said once.", what, peer)


def client_network(request: HttpRequest) -> str:
    """Who is calling, for counting: an IPv4 address, or the /64 of an IPv6 address, which is one subscriber's."""
    text: str = request.META.get("REMOTE_ADDR", "")
    address = read_node(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False).network_address)
    return text


def read_x_forwarded(header: str) -> list[Address | None]:
    """The addresses of X-Forwarded-For, the nearest proxy's last; None for one that cannot be read."""
    return [read_node(element) for element in read_list(header)]


def read_list(header: str) -> list[str]:
    """The elements of a list without their quotes; empty ones do not count (RFC 9110 section 5.6.1)."""
    elements = (element.strip(" \t") for element in header.split(","))
    return [element.strip('"').strip(" \t").lower() for element in elements if element]


def read_forwarded(header: str) -> list[Hop]:
    """The elements of Forwarded (RFC 7239 section 4), the nearest proxy's last.

    A header that breaks the grammar says nothing at all: a stranger may have opened a quote for a proxy to close.
    """
    try:
        return [
            Hop(read_node(pairs["for"]) if "for" in pairs else None, pairs.get("proto", "").lower() or None)
            for pairs in _forwarded_elements(header)
        ]
    except ValueError:
        return [Hop(None, None)]


def _forwarded_elements(header: str) -> Iterator[dict[str, str]]:
    """Each element as its pairs, with the names in small letters.

    Raises:
        ValueError: it breaks the grammar, or a name stands twice in an element.
    """
    pairs: dict[str, str] = {}
    place = 0
    while place < len(header):
        if header[place] in " \t,;":
            if header[place] == "," and pairs:
                yield pairs
                pairs = {}
            place += 1
            continue
        pair = _PAIR.match(header, place)
        if pair is None or pair[1].lower() in pairs:
            raise ValueError(header)
        pairs[pair[1].lower()] = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
        place = pair.end()
        if header[place : place + 1] not in ("", ",", ";"):
            raise ValueError(header)
    if pairs:
        yield pairs


def read_node(text: str) -> Address | None:
    """An address as proxies write it, with or without brackets, port and zone; None for anything else.

    Also for `unknown` and for names that a proxy made up to hide an address (RFC 7239 sections 6.2 and 6.3).
    """
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    # A zone names an interface of the proxy's host.
    plain = (match[1] or match[2] or match[3] or "").partition("%")[0]
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return None
    if match[1] is not None and address.version == 4:
        return None
    # ::ffff:192.0.2.1 is 192.0.2.1 on a socket that takes both.
    return getattr(address, "ipv4_mapped", None) or address
