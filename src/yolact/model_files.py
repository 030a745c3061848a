"""Model files named otherwise than by a path: by a ``zoo:`` stub, or as the latest in a folder.

What a stub names is found or fetched, and then read once by what will use it.
The command line and the Python API take stubs wherever they take the path of a model or recipe.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.download.stubs import Kind
from yolact.errors import CheckpointError

if TYPE_CHECKING:
    from yolact.download.trusted import Wanted

logger = logging.getLogger(__name__)


def stub_file(stub: str, *kinds: Kind) -> Path:
    """The file on this machine that a stub names; fetched first where that is still possible.

    Args:
        stub: Begins with ``zoo:``.
        kinds: What of the stub's model will do, the preferred kind first.

    Raises:
        CheckpointError: There never was such a model, or its file is gone.
        RecipeError: The same, where a recipe was wanted.
    """
    from yolact.download.resolve import resolve  # loads what the network needs

    return resolve(stub, *kinds, validate=read_once)


def model_kinds(engine: str | None) -> tuple[Kind, ...]:
    """What of a model an engine can run: an ONNX file where there is a choice."""
    if engine == "torch":
        return (Kind.CHECKPOINT,)
    return (Kind.ONNX, Kind.CHECKPOINT) if engine is None else (Kind.ONNX,)


def read_once(wanted: Wanted, path: Path) -> None:
    """Read a fetched file the way its users will; raises what they would."""
    if wanted.kind is Kind.CHECKPOINT:
        from yolact.checkpoint import load_checkpoint
        from yolact.download.trusted import OtherFileError

        if load_checkpoint(path).training is not None and wanted.weights_only:
            raise OtherFileError(
                f"{path} is the checkpoint of a run, not the published {wanted.name}",
                hint="move it away, or name another folder",
            )
    elif wanted.kind is Kind.ONNX:
        from yolact.engines.onnxruntime import OrtEngine

        OrtEngine(path)
    elif b"\x00" in path.read_bytes() or path.read_text("utf-8", "replace").startswith("<"):
        raise wanted.kind.error(
            f"{path} is not a recipe", hint="look into it: a failed download is often a web page"
        )


def find_checkpoint(folder: Path, which: str, config_name: str) -> Path:
    """The newest checkpoint of ``config_name`` in ``folder``.

    Args:
        folder: Where a run saved its checkpoints.
        which: ``interrupt`` for the one an interrupted run left, ``latest`` for the one furthest
            along, interrupted or not.
        config_name: First part of the file names.

    Returns:
        Its path; where another one was written later, as by a new run in the same folder, the log
        names both.

    Raises:
        CheckpointError: There is none.
    """
    from yolact.checkpoint import parse_checkpoint_name  # loads torch

    pattern = "*_interrupt.pth" if which == "interrupt" else "*.pth"
    named = [(path, parse_checkpoint_name(path)) for path in folder.glob(pattern)]
    ours = [(parts[2], path) for path, parts in named if parts and parts[0] == config_name]
    if not ours:
        raise CheckpointError(
            f"no {which} checkpoint of {config_name} in {folder}",
            hint="give the file's path, or the --save_folder of the run to continue",
        )
    furthest = max(ours)[1]
    newest = max((path for _, path in ours), key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > furthest.stat().st_mtime:
        logger.warning(
            "%s: %s, the furthest along, is taken, but %s was written later; give the path of the "
            "one that is meant",
            *(folder, furthest.name, newest.name),
        )
    return furthest
