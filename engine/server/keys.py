"""API keys: compared in a time that says nothing of them."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Collection

from stepfuse.server.errors import ApiError

#: What needs no key: it says that the service is there, and nothing else. The page asks for one.
OPEN = ("/", "/health", "/ready")


class Keys:
    """The keys that are taken; without any, every request is.

    Args:
        keys: Each of at least one character.

    Raises:
        ValueError: If one is empty or not ASCII.
        TypeError: If ``keys`` is one text, each character of which would be a key.
    """

    def __init__(self, keys: Collection[str]) -> None:
        if isinstance(keys, str):
            raise TypeError("api_keys must be a list of keys, got one text")
        for key in keys:
            if not (key and key.isascii() and key.isprintable() and key == key.strip()):
                raise ValueError("an API key must be of printable ASCII characters, without spaces around it")
        self._keys = [key.encode() for key in keys]

    def check(self, path: str, authorization: str | None) -> None:
        """Refuses a request without a key.

        Args:
            path: Of the request.
            authorization: Its header.

        Raises:
            ApiError: 401 if the key is missing or wrong.
        """
        if not self._keys or path in OPEN:
            return
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "basic":  # as clients of the web interfaces send a user's name and password
            scheme, given = "bearer", _password(given)
        # Every key is compared, so that the time does not say which one is close.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            wrong = "is none of this service's" if given else "must be given, as Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, f"the API key {wrong}", code="invalid_api_key", headers=headers)


def _password(given: str) -> str:
    """The password of HTTP's basic authentication (RFC 7617); empty where there is none."""
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""
