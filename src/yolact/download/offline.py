"""Whether the network may be used, and whether it can be: asked before anything is fetched.

Fetching files is all that this package ever does on the network.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit

from yolact.errors import DownloadError

OFFLINE = "YOLACT_OFFLINE"
"""Environment variable that ``--offline`` sets for the time of a command; may be set by hand."""
_NO = ("", "0", "false", "no", "off", "n", "f")
_PORTS = {"http": 80, "https": 443}


def is_offline() -> bool:
    """Whether the user forbids the network: ``--offline``, or ``YOLACT_OFFLINE=1``."""
    return os.environ.get(OFFLINE, "").strip().lower() not in _NO


def require_online(what: str, *, forbidden: bool = False) -> None:
    """Refuse to fetch ``what`` when the network is ``forbidden``, by the caller or the user.

    Raises:
        DownloadError: It is; the message calls the file ``what``.
    """
    if forbidden or is_offline():
        raise DownloadError(
            f"{what} is not on this machine, and --offline forbids fetching it",
            hint=f"leave out --offline (and unset {OFFLINE})",
        )


def require_network(what: str, urls: Sequence[str], timeout: float = 3.0) -> None:
    """Find out at once that ``what`` cannot be fetched, before transfers begin to be patient.

    Args:
        what: What messages call it.
        urls: Where it may be fetched from; one server that can be reached is enough.
        timeout: Seconds for each of them.

    Raises:
        DownloadError: The user forbids the network, or there is none.
    """
    require_online(what)
    reasons = []
    for url in urls:
        reason = why_unreachable(url, timeout)
        if reason is None:
            return
        reasons.append(reason)
    raise DownloadError(
        f"{what} cannot be fetched: {'; '.join(dict.fromkeys(reasons))}",
        hint=f"check the connection, or fetch {urls[-1]} on another machine",
    )


def why_unreachable(url: str, timeout: float = 3.0) -> str | None:
    """Why no connection to ``url``'s server can be opened; None when one can.

    Looking up a name has no time limit of its own and can take half a minute without a network,
    so it happens in a thread that is left behind when it takes too long.

    Args:
        url: http or https. Where a proxy is configured for it, the proxy is tried instead.
        timeout: Seconds to wait in all.
    """
    host, port = _first_hop(url)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout).close()
        except OSError as error:
            outcome.append(f"{host} cannot be reached: {error.strerror or error}")
        else:
            outcome.append(None)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else f"{host} did not answer within {timeout:g} s"


def _first_hop(url: str) -> tuple[str, int]:
    """Host and port that a request for ``url`` connects to."""
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or _PORTS.get(target.scheme, 443)
