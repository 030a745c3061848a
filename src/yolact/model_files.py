"""Files that a ``zoo:`` stub names: found or fetched, and then read once by what will use them.

The command line and the Python API take stubs wherever they take the path of a model or recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolact.download.stubs import Kind

if TYPE_CHECKING:
    from yolact.download.trusted import Wanted


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
