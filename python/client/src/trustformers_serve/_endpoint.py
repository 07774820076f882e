"""Where a client calls and what it shows of that: checks of what has to be known before the first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MOST_CONNECTIONS = 65_536
"""More than a process can have."""


def checked_url(base_url: str) -> str:
    """The URL to which paths are appended.

    Raises:
        ValueError: It is none of HTTP; the message shows it without a password.
    """
    if _is_http(base_url):
        return base_url.rstrip("/")
    meant = f"http://{base_url}"
    hint = f"; did you mean {shown(meant)!r}?" if "://" not in base_url and _is_http(meant) else ""
    raise ValueError(f"base_url must be an http:// or https:// URL, not {shown(base_url)!r}{hint}")


def checked_headers(headers: Mapping[str, str] | None, api_key: str | None) -> dict[str, str]:
    """The headers of every request, without that of the key.

    Raises:
        ValueError: One of them, or the key, cannot be sent. The message never has a value.
    """
    if api_key is not None and not (api_key and _is_sendable(api_key)):
        raise ValueError("api_key must be printable ASCII characters, at least one")
    for name, value in (headers or {}).items():
        if not (name and _is_sendable(name) and _is_sendable(value)):
            raise ValueError(f"headers must be printable ASCII characters, and {name!r} is not")
    return dict(headers or {})


def shown(url: str) -> str:
    """A URL as a repr shows it: without a name and a password that stand in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.rpartition("@")[2]
    if not parts.netloc:
        return url.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _is_sendable(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # A port that is none raises when it is read.
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment)
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False
