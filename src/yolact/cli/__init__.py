"""The ``sparseml.yolact`` commands: options in, one call into the core, results out.

This file is the group of them; a command's module is imported when the command is called.
"""

from __future__ import annotations

from importlib import import_module

import click

from yolact import __version__
from yolact.cli.base import Boundary

COMMANDS = {
    "download": "Fetch COCO, or generate a small sample set.",
    "configs": "List the networks, their sizes, and where their weights come from.",
    "recipe": "Check what a recipe will do, before a long run follows it.",
    "train": "Train, prune and quantize a model.",
    "validation": "Measure box and mask AP, or run on images and videos.",
    "export_onnx": "Convert a checkpoint to ONNX and check it against PyTorch.",
    "benchmark": "Measure throughput and latency of an ONNX file.",
    "annotate": "Draw the detected instances on images and videos.",
}


def command(name: str) -> click.Command:
    """The click command called ``name``, which lives in ``yolact.cli.<name>`` under that name."""
    loaded = getattr(import_module(f"yolact.cli.{name}"), name)
    assert isinstance(loaded, click.Command)
    return loaded


class LazyGroup(Boundary, click.Group):
    """A group whose help needs none of its commands' modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the tutorial."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; ``export-onnx`` and ``export_onnx`` are one."""
        name = cmd_name.replace("-", "_")
        return command(name) if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from :data:`COMMANDS` instead of importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    epilog="Each command also exists on its own: sparseml.yolact.train and so on.",
)
@click.version_option(__version__, prog_name="sparseml.yolact")
def main() -> None:
    """YOLACT instance segmentation: train, sparsify, export, run."""
