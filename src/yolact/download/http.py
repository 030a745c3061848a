"""One request for a part of a file: what its answer means, and when to give up on a server."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import requests
import urllib3

from yolact.download.part import Origin, Span
from yolact.errors import DownloadError

_BLOCK = 1 << 18
_REDIRECTS = 10
_PASSING = (408, 425, 429)
"""Statuses below 500 after which the same request can succeed a little later."""


@dataclass(frozen=True)
class Patience:
    """How long and how often a server is waited for, all times in seconds."""

    attempts: int = 6
    """Failures in a row, without one new byte between them, before an address is given up."""
    first_wait: float = 1.0
    """Before the second attempt; each later wait is twice as long."""
    longest_wait: float = 60.0
    """Bound of each wait, also of one that the server asks for."""
    connect: float = 15.0
    """For a connection."""
    stall: float = 30.0
    """Without one byte."""
    save_every: float = 1.0
    """Between two records of what has arrived; a killed process loses at most this much."""

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after so many failures in a row.

        They are drawn from the upper half of the interval, so that clients that failed together do
        not come back together.

        Args:
            failures: 1 after the first.
            asked: What the server's Retry-After asks for.
        """
        base: float = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
        drawn = base * random.uniform(0.5, 1.0)
        return drawn if asked is None else max(drawn, min(asked, self.longest_wait))


class Broken(Exception):
    """The transfer failed in a way that may pass; bytes that have arrived are still good."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        """Keep the reason, in words, and the wait in seconds that the server asks for."""
        super().__init__(reason)
        self.retry_after = retry_after


class Restart(Exception):
    """What has arrived is of no use: the file is another one now, or cannot be resumed."""


@dataclass(frozen=True)
class Answer:
    """A server's willingness to send bytes ``start`` to ``end`` of a file."""

    response: requests.Response
    origin: Origin
    start: int
    end: int | None
    """Exclusive; None where the server does not say."""
    partial: bool
    """Whether the server sends ranges of the file on request."""

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they arrive.

        Raises:
            Broken: They stop arriving before ``end``, or go on after it.
        """
        position = self.start
        raw = self.response.raw
        try:
            while block := raw.read1(_BLOCK, decode_content=False):
                position += len(block)
                if self.end is not None and position > self.end:
                    raise Broken("the server sends more than it was asked for")
                yield block
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Broken("no byte has come for too long") from error
        except urllib3.exceptions.HTTPError as error:
            raise Broken(f"the connection broke ({_root(error)})") from error
        finally:
            if position != self.end:  # else the connection serves the next request
                self.response.close()
        if self.end is not None and position < self.end:
            raise Broken("the connection ended too early")


def new_session() -> requests.Session:
    """Connections to servers; one for each thread."""
    session = requests.Session()
    session.max_redirects = _REDIRECTS
    return session


def ask(
    session: requests.Session, url: str, span: Span, known: Origin | None, patience: Patience
) -> Answer:
    """Ask for the bytes of ``span``.

    Args:
        session: Holds the connections.
        url: Address of the file.
        span: Of the file; the answer may begin at 0 instead, or end earlier.
        known: The version that the bytes must belong to; None for any.
        patience: Its time limits.

    Raises:
        Broken: No answer, or one that may pass.
        Restart: The answer is about another version than ``known``, or the server does not
            resume.
        DownloadError: An answer that would not change.
    """
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={span[0]}-{span[1] - 1}"}
    if known and known.validator:
        headers["If-Range"] = known.validator
    response = _get(session, url, headers, patience)
    try:
        _require_success(url, response)
        answer = _understand(url, response, span)
        if span[0] and not answer.partial:
            raise Restart("the server does not resume, or the file has changed")
        if known and _differ(known, answer.origin):
            raise Restart("the file has changed on the server")
    except BaseException:
        response.close()
        raise
    return answer


def _get(
    session: requests.Session, url: str, headers: Mapping[str, str], patience: Patience
) -> requests.Response:
    try:
        return session.get(
            url, headers=headers, stream=True, timeout=(patience.connect, patience.stall)
        )
    except requests.exceptions.ConnectTimeout as error:
        raise Broken(f"no connection within {patience.connect:g} s") from error
    except requests.exceptions.ReadTimeout as error:
        raise Broken(f"no answer within {patience.stall:g} s") from error
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise Broken(f"the connection broke ({_root(error)})") from error
        raise DownloadError(
            f"{url} cannot prove who it is: its certificate is not valid here",
            hint="check the clock and the certificates of this machine, or use another network",
        ) from error
    except (requests.exceptions.TooManyRedirects, ValueError) as error:
        raise DownloadError(
            f"{url} leads to no usable address: {error}", hint="report it, or use --mirror"
        ) from error
    except requests.exceptions.RequestException as error:
        raise Broken(f"no connection ({_root(error)})") from error


def _require_success(url: str, response: requests.Response) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise Restart("the file is shorter than what has arrived of it")
    if status >= 500 or status in _PASSING:
        asked = response.headers.get("Retry-After", "")
        raise Broken(
            f"the server answers {status} {response.reason}",
            float(asked) if asked.isdecimal() else None,
        )
    raise DownloadError(
        f"{url} answered {status} {response.reason}",
        hint="the file may have moved: report it, or fetch it by hand",
    )


def _understand(url: str, response: requests.Response, span: Span) -> Answer:
    headers = response.headers
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise DownloadError(
            f"{url} answered with a web page instead of the file",
            hint="something on the way asks for a login or reports an error: open it in a browser",
        )
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
    start, end = 0, size
    if partial:
        start, end, size = _content_range(url, headers.get("Content-Range", ""), span)
    return Answer(response, Origin(url, size, _validator(headers)), start, end, partial)


def _content_range(url: str, text: str, span: Span) -> tuple[int, int, int]:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", text.strip())
    start, last, size = (int(group) for group in match.groups()) if match else (-1, -1, -1)
    if start != span[0] or not start <= last < min(span[1], size):
        raise DownloadError(
            f"{url} was asked for bytes {span[0]}-{span[1] - 1} and sends {text or 'others'!r}",
            hint="something between here and the server is at fault; try another network",
        )
    return start, last + 1, size


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range takes: a weak ETag does not promise that the bytes are the same."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _differ(known: Origin, now: Origin) -> bool:
    sizes, validators = (known.size, now.size), (known.validator, now.validator)
    return any(None not in pair and pair[0] != pair[1] for pair in (sizes, validators))


def _root(error: BaseException) -> str:
    """What the operating system said, or else the innermost error's class."""
    reason = ""
    while True:
        if isinstance(error, OSError) and error.strerror and error.errno:
            reason = error.strerror
        inner = error.__cause__ or error.__context__
        if inner is None:
            return reason or type(error).__name__
        error = inner
