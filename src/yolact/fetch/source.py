"""What is to be fetched and what is known of it beforehand."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yolact.errors import ConfigError

UNSTATED = "sha256"
"""What is computed of a file whose digest nobody states."""
_BLOCK = 1 << 20


class Hash(Protocol):
    """The part of :mod:`hashlib`'s objects that is used here."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""

    def hexdigest(self) -> str:
        """The hash of all bytes so far, in hexadecimal digits."""


@dataclass(frozen=True)
class Digest:
    """A hash of a file's content."""

    algorithm: str
    """A name of :mod:`hashlib`: ``md5``, ``sha256``."""
    value: str
    """In lower-case hexadecimal digits."""

    def __str__(self) -> str:
        """Such as ``md5 442b8da7639aecaf257c1dceb8ba8c80``."""
        return f"{self.algorithm} {self.value}"

    def start(self) -> Hash:
        """A new, empty hash of this kind."""
        return new_hash(self.algorithm)


def new_hash(algorithm: str) -> Hash:
    """An empty hash; MD5 is there to find damage, not to keep forgers out."""
    return hashlib.new(algorithm, usedforsecurity=False)


def digest_of(path: Path, algorithm: str = UNSTATED) -> Digest:
    """Hash the content of a file."""
    digest = new_hash(algorithm)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Digest(algorithm, digest.hexdigest())


@dataclass(frozen=True)
class Source:
    """A file on the internet, at one address or at several that hold the same bytes."""

    urls: tuple[str, ...]
    """http or https addresses in the order in which they are tried."""
    size: int | None = None
    """In bytes; None where it is not known beforehand."""
    digest: Digest | None = None
    """None where it is not known beforehand; then no redirect may leave https."""
    begins: tuple[bytes, ...] = ()
    """What its content can begin with, such as ``b"PK\\3\\4"`` for a zip file; empty: anything."""

    def __post_init__(self) -> None:
        """Refuse addresses that are no web addresses.

        Raises:
            ConfigError: There is no address, or one with another scheme than http and https.
        """
        if not self.urls:
            raise ConfigError("there is no address to download from", hint="give a mirror")
        for url in self.urls:
            require_web_address(url)


def require_web_address(url: str) -> None:
    """Check that ``url`` begins with http:// or https:// and a host.

    Raises:
        ConfigError: It does not.
    """
    if not re.match(r"https?://[^/\s]+", url, re.IGNORECASE):
        raise ConfigError(
            f"{url!r} is not an address to download from",
            hint="give one that starts with https:// or http://",
        )
