"""Entry point of ``sparseml.yolact.validation``; SparseML's own script calls ``main`` too."""

from __future__ import annotations

from yolact.cli import command


def main() -> None:
    """Run the command with the process's arguments."""
    command("validation")(prog_name="sparseml.yolact.validation")


if __name__ == "__main__":
    main()
