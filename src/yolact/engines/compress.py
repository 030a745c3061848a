"""Sizes on disk: sparse and low-bit weights only show once a file is compressed."""

from __future__ import annotations

import gzip
import lzma
import shutil
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast, get_args

import zstandard

from yolact.errors import CheckpointError
from yolact.files import Compression, atomic_path

FORMATS: Sequence[Compression] = get_args(Compression)
QUICK: Sequence[Compression] = ("gz", "zst")
"""Formats that take about 4 s for 100 MB of weights; xz takes a minute and a half."""

_CHUNK = 1 << 20
_GZIP_LEVEL = 6
"""9 saves another 8 % on sparse weights and takes fifteen times as long."""
_XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 1, "lp": 2, "pb": 2}]
"""``lp`` tells the four bytes of a float apart: files of floats become 7 to 8 % smaller than with
the preset alone, in the same time; files of bytes as large as before."""
_ZSTD_LEVEL = 9
"""As small as gzip in the same time; 19 saves another 10 % and takes twenty times as long."""


def compression_of(path: Path) -> Compression | None:
    """How the file is compressed, by its ending; None for any other."""
    ending = path.suffix.lower().removeprefix(".")
    return cast(Compression, ending) if ending in FORMATS else None


def compressed_size(path: Path, kind: Compression = "gz") -> int:
    """Bytes that ``path`` takes compressed; nothing is written.

    This is the "size on disk" of sparse models: an engine stores zeros in full, archives do not.
    A file that is compressed already, in whatever format, counts as it is.
    """
    if compression_of(path) is not None:
        return path.stat().st_size
    counter = _Counter()
    _pack(path, cast(IO[bytes], counter), kind)
    return counter.total


def compress_file(path: Path, kind: Compression) -> Path:
    """Write ``path`` compressed as ``<path>.<kind>`` beside it; engines read it as it is.

    The same content gives the same bytes.

    Raises:
        StorageError: It cannot be written.
    """
    target = path.with_name(f"{path.name}.{kind}")
    with atomic_path(target) as temporary, temporary.open("wb") as raw:
        _pack(path, raw, kind)
    return target


def unpack(path: Path) -> bytes:
    """The content of a compressed file.

    Raises:
        CheckpointError: It is damaged, or not compressed as its ending says.
    """
    kind = compression_of(path)
    try:
        packed = path.read_bytes()
        if kind == "zst":
            return _unpack_zstd(packed)
        return lzma.decompress(packed) if kind == "xz" else gzip.decompress(packed)
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint="copy it again") from error


def _unpack_zstd(packed: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().decompressobj()
    content = reader.decompress(packed)
    if not reader.eof:  # all other ways to unpack take a file that was cut short for a whole one
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
    return content


class _Counter:
    """A binary file that keeps nothing but the number of bytes."""

    def __init__(self) -> None:
        self.total = 0

    def write(self, data: Any) -> int:
        self.total += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing; packers call it."""


def _pack(path: Path, target: IO[bytes], kind: Compression) -> None:
    with path.open("rb") as source:
        if kind == "zst":
            packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
            packer.copy_stream(source, target, size=path.stat().st_size)
            return
        packed: Any = (
            lzma.LZMAFile(target, "wb", filters=_XZ_FILTERS)
            if kind == "xz"
            # Without name and time, so that the same model gives the same bytes.
            else gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0)
        )
        with closing(packed):
            shutil.copyfileobj(source, packed, _CHUNK)
