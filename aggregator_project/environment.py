"""Reads environment variables with django-environ and notes every mistake instead of stopping at the first one.

A wrong value leaves the default in place and adds one line to `mistakes`; events/checks.py turns each line into a
system check error, so no part of the service starts on a setting it could not read.
"""

import ipaddress
import os
import re
from collections.abc import MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import environ

#: A host is a name, an IPv4 address or an IPv6 address in brackets.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])(?::[1-9]\d{0,4})?")


class Environment:
    """Typed look-ups in the process environment.

    Attributes:
        mistakes: one line a wrong variable, saying what it holds and what it should hold.
        names: every variable that was asked for, in order; the README's table is tested against it.
    """

    def __init__(self, variables: MutableMapping[str, str] = os.environ) -> None:
        self._env = environ.Env()
        self._env.ENVIRON = self._variables = variables
        self.mistakes: list[str] = []
        self.names: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        """The variable as it stands, or the default where it is unset or empty."""
        self.names.append(name)
        # Not environ's str(), which takes a value that begins with $ for the name of another variable.
        return self._variables.get(name) or default

    def flag(self, name: str, default: bool) -> bool:
        """A yes or no: true/false, yes/no, on/off, 1/0 in any case."""
        value = self.text(name)
        if not value:
            return default
        if value.lower() not in {"true", "false", "yes", "no", "on", "off", "1", "0"}:
            self._note(name, value, "true or false")
            return default
        return bool(self._env.bool(name))

    def whole(self, name: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        """A whole number between minimum and maximum, both included."""
        value = self.text(name)
        if not value:
            return default
        wanted = f"a whole number from {minimum}" + ("" if maximum is None else f" to {maximum}")
        try:
            number = int(self._env.int(name))
        except ValueError:
            self._note(name, value, wanted)
            return default
        if number < minimum or (maximum is not None and number > maximum):
            self._note(name, value, wanted)
            return default
        return number

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of the given words, in any case."""
        value = self.text(name)
        for word in choices:
            if value.lower() == word.lower():
                return word
        if value:
            self._note(name, value, "one of " + ", ".join(choices))
        return default

    def words(self, name: str, default: Sequence[str] = ()) -> list[str]:
        """A list of words separated by commas."""
        value = self.text(name)
        return [word.strip() for word in value.split(",") if word.strip()] if value else list(default)

    def url(self, name: str, default: str, schemes: Sequence[str]) -> str:
        """A URL with one of the given schemes. A password in it is never repeated in a mistake."""
        value = self.text(name)
        if not value:
            return default
        try:
            known = urlsplit(value).scheme in schemes
        except ValueError:
            known = False
        if not known:
            self._note_url(name, value, schemes)
            return default
        if "#" in value:
            # What follows it is no part of the address, so a path or a password would be cut off there.
            self._note(name, value.split(":", 1)[0] + ":…", "a URL in which a # is written as %23")
            return default
        return value

    def networks(self, name: str) -> list[str]:
        """A list of IP addresses and networks (10.0.0.0/8) separated by commas."""
        found = self.words(name)
        try:
            return [str(ipaddress.ip_network(word)) for word in found]
        except ValueError:
            self._note(name, ",".join(found), "a list of IP addresses or networks such as 10.0.0.2 or 10.0.0.0/8")
            return []

    def origins(self, name: str) -> list[str]:
        """A list of origins as browsers write them (RFC 6454 section 6.2), separated by commas."""
        found = self.words(name)
        for word in found:
            usual_port = ":443" if word.startswith("https:") else ":80"
            if not _ORIGIN.fullmatch(word) or word.endswith(usual_port):
                self._note(
                    name,
                    word,
                    "a list of origins as browsers send them: scheme and host in small letters, the port only if it is "
                    "not the usual one, no path, such as https://app.example.com or http://localhost:3000",
                )
                return []
        return found

    def rate(self, name: str) -> str:
        """How often something may be done: 100/second, 600/minute, 10000/hour; empty where it is not limited."""
        value = self.text(name).lower().replace(" ", "")
        if value and not re.fullmatch(r"[1-9]\d{0,8}/(s|sec|second|m|min|minute|h|hour|d|day)", value):
            self._note(name, value, "a rate such as 100/second, 600/minute or 10000/hour")
            return ""
        return value

    def database(self, name: str, default: dict[str, Any], schemes: Sequence[str]) -> dict[str, Any]:
        """Django's settings for the database a URL names; the default where it names none."""
        url = self.url(name, "", schemes)
        if not url:
            return default
        parts = urlsplit(url)
        if parts.scheme == "sqlite" and (parts.netloc or parts.query or not parts.path.strip("/")):
            self._note(name, url, "sqlite:/// and the absolute path of a file, with a ? in it written as %3F")
            return default
        try:
            found = dict(self._env.db_url_config(url))
        except ValueError:
            self._note_url(name, url, schemes)
            return default
        if parts.scheme == "sqlite":
            # django-environ would make a blank of a +, as in a form.
            found["NAME"] = unquote(parts.path.removeprefix("/"))
        return found

    def _note_url(self, name: str, value: str, schemes: Sequence[str]) -> None:
        wanted = "a URL that starts with " + " or ".join(scheme + "://" for scheme in schemes)
        self._note(name, value.split(":", 1)[0] + ":…", f"{wanted}; its host and port must be readable")

    def _note(self, name: str, value: str, wanted: str) -> None:
        self.mistakes.append(f"{name} is {value!r}; it must be {wanted}")
