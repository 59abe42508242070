"""Django's Redis cache with a client that is kept: Django makes a new one a call, which costs more than the call.

And one that asks sentinels where Redis is.
"""

from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from redis.sentinel import Sentinel


class KeptRedisCacheClient(RedisCacheClient):
    """Django's, for one server, so one client; it is safe among threads and takes its connections from a pool."""

    @cached_property
    def _kept(self) -> Any:
        return super().get_client()

    def get_client(self, key: Any = None, *, write: bool = False) -> Any:
        return self._kept


class KeptRedisCache(RedisCache):
    """Django's Redis cache."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._class = KeptRedisCacheClient


class SentinelCacheClient(KeptRedisCacheClient):
    """One whose servers are sentinels: it asks them for the master, again whenever that is gone."""

    def __init__(self, servers: list[str], *, master: str, sentinel_password: str = "", **options: Any) -> None:
        super().__init__(servers, **options)
        self._urls = [urlsplit(server) for server in servers]
        self._master = master
        self._sentinel_options = {**options, "password": sentinel_password or None}
        self._options = options

    @cached_property
    def _kept(self) -> Any:
        given = {
            "db": next((url.path[1:] for url in self._urls if url.path[1:]), "0"),
            "username": next((unquote(url.username) for url in self._urls if url.username), None),
            "password": next((unquote(url.password) for url in self._urls if url.password), None),
        }
        hosts = [(url.hostname, url.port or 26379) for url in self._urls]
        sentinels: Any = Sentinel(hosts, sentinel_kwargs=self._sentinel_options)  # type: ignore[no-untyped-call]
        return sentinels.master_for(self._master, **self._options, **given)


class SentinelCache(RedisCache):
    """Django's Redis cache, found through sentinels."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._class = SentinelCacheClient
