"""Files with weights, whatever program wrote them: read without running what is in them.

What stands for settings of other programs is not read; files of other kinds are named by their
first bytes.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from yolact.errors import CheckpointError

ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".pth.tar")
"""Of files with weights; a file that an option names may have any other."""
LARGEST = 20
"""Times its size that a file may become in memory: none of real weights comes near it."""
_SETTINGS = {"argparse", "collections", "datetime", "enum", "pathlib", "types", "typing"}
"""Modules of Python whose types hold settings."""
_VALUES = re.compile(
    r"_codecs\.encode|builtins\.(bool|dict|float|int|list|object|set|slice|str|tuple)"
    r"|torch\.(optim|amp|cuda\.amp)\..*"
)
"""Types of plain values, and what a run needs besides the network."""


def read_file(path: Path) -> Any:
    """What was saved in a file of PyTorch or safetensors, on the CPU; no code in it is run.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or holds more than tensors
            and plain values.
    """
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint not found: {path}", hint="check the path, or train a model first"
        )
    _require_weights_file(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with path.open("rb") as file:
                if is_safetensors(file.read(9)):
                    from safetensors.torch import load_file  # only here: such files are rare

                    return load_file(path)
            return _read_torch(path)
    except pickle.UnpicklingError as error:
        objects = ", ".join(_objects_in(path)[:3])
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors and values"
            + f": it has objects of {objects}" * bool(objects),
            hint="files that need arbitrary code to load are refused; save a state_dict instead",
        ) from error
    except Exception as error:  # what is raised on damaged bytes can be almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}",
            hint="the file may be truncated; copy or download it again",
        ) from error


def _read_torch(path: Path) -> Any:
    """Read what torch wrote; what stands for settings of other programs is not read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        unread = stand_ins(_objects_in(path))
        if not unread:
            raise
    with torch.serialization.safe_globals(unread):
        return torch.load(path, map_location="cpu", weights_only=True)


def _objects_in(path: Path) -> list[str]:
    """Full names of the classes and functions in a file that torch does not read as they are."""
    try:
        if zipfile.is_zipfile(path):
            return _foreign_first(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with path.open("rb") as file:  # three pickles of torch's own, then what was saved
            *_, saved = [list(pickletools.genops(file)) for _ in range(4)]
    except Exception:  # damaged: there is nothing to tell
        return []
    names = {str(arg).replace(" ", ".") for code, arg, _ in saved if code.name == "GLOBAL"}
    names = {name.replace("__builtin__.", "builtins.") for name in names}  # of Python 2
    return _foreign_first(
        name for name in names if not re.match(r"torch\.(_utils|\w+Storage)", name)
    )


def _foreign_first(names: Iterable[str]) -> list[str]:
    """Those that say most about a file first: not the layers of torch."""
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def _require_weights_file(path: Path) -> None:
    """Tell files of other kinds from damaged ones, for which torch has the same words."""
    try:
        kind = other_kind_of_file(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error.strerror}",
            hint="check the file's permissions",
        ) from error
    if kind is not None:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is {kind}",
            hint="the file may be truncated; copy or download it again"
            if kind == "empty"
            else f"give a file of PyTorch or safetensors ({', '.join(ENDINGS)}) with weights",
        )


_BEGINNINGS = (
    (rb"\s*<(!doctype|html|head|body|\?xml)", "a web page, as a failed download leaves one"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file: git lfs pull fetches it"),
    (rb"\x89HDF", "a file of Keras or another program that writes HDF5"),
    (rb"\x08[\x01-\x1f](\x12|\x1a|\x3a|\x22)", "an ONNX file: let its name end in .onnx"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "compressed: unpack it"),
    (rb".{257}ustar", "a tar archive: unpack it"),
    (rb"\x00{4}[\x01\x02]\x00{3}.\x00{3}", "weights of the program darknet, not of PyTorch"),
    (rb"\x93NUMPY", "an array of NumPy"),
)
"""How files begin that are taken for weights of PyTorch."""


def other_kind_of_file(path: Path) -> str | None:
    """What a file is, in words, when it is neither of PyTorch nor of safetensors; else None.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(512)
    if not begin:
        return "empty"
    if begin.startswith(b"PK") and zipfile.is_zipfile(path):
        return _other_kind_of_archive(path)
    if begin.startswith((b"PK", b"\x80")) or is_safetensors(begin):
        return None
    for pattern, what in _BEGINNINGS:
        if re.match(pattern, begin, re.IGNORECASE | re.DOTALL):
            return what
    return f"not a file of PyTorch, it begins with {begin[:15]!r}"


def is_safetensors(begin: bytes) -> bool:
    """Whether a file that begins so has the format safetensors: a length, then JSON."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 2**30


def _other_kind_of_archive(path: Path) -> str | None:
    """What a zip archive is, when it is not one that ``torch.save`` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, inside = archive.namelist(), sum(e.file_size for e in archive.infolist())
    except Exception:  # damaged: torch says how
        return None
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return "a program of TorchScript, not weights: save the state_dict"
    if "model.weights.h5" in ends:
        return "a model of Keras"
    if "data.pkl" not in ends:
        return f"a zip archive of {len(names)} files: unpack it (first: {', '.join(names[:1])})"
    if inside > LARGEST * path.stat().st_size + 2**20:
        return f"an archive that would become {inside:,} bytes"
    return None


class Unread:
    """Stands for an object of another program, so that the tensors beside it can be read.

    Nothing of that program is imported or called, and what the object held is dropped.
    """

    def __new__(cls, *_: object, **__: object) -> Unread:
        """Take whatever the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take whatever the object was."""


class UnreadDict:
    """The same for a kind of dict, which becomes a plain one."""

    def __new__(cls, *_: object, **__: object) -> dict[Any, Any]:  # type: ignore[misc]
        """Take whatever the dict was made of."""
        return {}


def stand_ins(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What ``torch.load`` may put in place of objects that hold the settings of other programs.

    Args:
        names: Full names of classes and functions.

    Returns:
        A harmless type for each name; nothing when one is of a layer, or of a module of Python
        that has no place in a file of weights.
    """
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for name in names:
        module = name.partition(".")[0]
        inner = {"__builtin__", "copy_reg", "torch", *sys.stdlib_module_names}
        if module in inner - _SETTINGS and not _VALUES.fullmatch(name):
            return []
        found.append((UnreadDict if re.search(r"(?i)dict|cfgnode", name) else Unread, name))
    return found
