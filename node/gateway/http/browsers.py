"""Whether a request comes from a web page of others.

Such a page could ask a gateway on loopback in the name of the person who looks at the page."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

ANY = "*"
"""Pages of all origins."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_foreign(origin: str | None, host: str | None, is_loopback: bool, allowed: Collection[str] = ()) -> bool:
    """Whether a request comes from a page that this gateway has not served.

    origin, host: the headers. A page names its origin, and a program none. is_loopback: the gateway is for this machine only, so
    that another host name means a name that was pointed here (DNS rebinding). allowed: other origins whose pages may ask.
    """
    try:
        name, of_origin = urlsplit(f"//{host or ''}").hostname, urlsplit(origin or "").netloc
    except ValueError:  # as `http://[`: no browser says that
        return True
    if is_loopback and name not in LOOPBACK:
        return True
    return origin is not None and of_origin != host and not {origin, ANY} & {*allowed}
