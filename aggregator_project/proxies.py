"""Who is calling, also behind proxies: X-Forwarded-For and X-Forwarded-Proto count only from TRUSTED_PROXIES."""

import ipaddress
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

#: Bits of an IPv6 address that say whose it is; the rest a client chooses itself (RFC 6177).
IPV6_NETWORK_BITS = 64


class TrustedProxies:
    """Django middleware, in MIDDLEWARE only where there are trusted proxies.

    Sets REMOTE_ADDR to the last address of X-Forwarded-For that is no trusted proxy, since what stands before it is
    only what a stranger said, and the scheme to what the proxy says of its side. From others both headers are dropped.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.networks = [ipaddress.ip_network(network) for network in settings.TRUSTED_PROXIES]

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        meta = request.META
        told = meta.pop("HTTP_X_FORWARDED_FOR", "")
        scheme = meta.pop("HTTP_X_FORWARDED_PROTO", "")
        if self._trusted(meta.get("REMOTE_ADDR", "")):
            meta["wsgi.url_scheme"] = "https" if scheme.strip().lower() == "https" else "http"
            meta["REMOTE_ADDR"] = self._client(told) or meta["REMOTE_ADDR"]
        return self.get_response(request)

    def _client(self, told: str) -> str | None:
        for address in reversed([part.strip() for part in told.split(",")]):
            if _address(address) is None:
                return None
            if not self._trusted(address):
                return address
        return None

    def _trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self.networks)


def client_network(request: HttpRequest) -> str:
    """Who is calling, for counting: an IPv4 address, or the /64 of an IPv6 address, which is one subscriber's."""
    text: str = request.META.get("REMOTE_ADDR", "")
    address = _address(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False).network_address)
    return text


def _address(text: str) -> Any:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # ::ffff:192.0.2.1 is 192.0.2.1 on a socket that takes both.
    return getattr(address, "ipv4_mapped", None) or address
