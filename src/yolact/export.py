"""Entry point of ``sparseml.yolact.export_onnx``; SparseML's own script calls ``main`` too."""

from __future__ import annotations

from yolact.cli import command


def main() -> None:
    """Run the command with the process's arguments."""
    command("export_onnx")(prog_name="sparseml.yolact.export_onnx")


if __name__ == "__main__":
    main()
