"""How small exported models get: each kind, as it is and in every compressed format.

Takes the files that ``scripts/speed.py`` has exported, or exports them. Their weights are those
that a network begins with; the zeros are where the recipes put them.

The result is the table of ``recipes/onnx.md``, in ``speed/sizes.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from commands import machine
from speed import FILES, File, Speed

from yolact.engines.compress import FORMATS, compressed_size

KINDS = (
    *(file for file in FILES if not {"--skip-qat-convert", "--format"} & {*file.options}),
    File("pruned_quant", ("--pack_blocks",)),
)
"""Rows of the table; other files differ from one of these by less than 1 %, or are not deployed."""


def sizes(path: Path) -> tuple[int, ...]:
    """Bytes of a file, and of the same compressed in each format."""
    return path.stat().st_size, *(compressed_size(path, kind) for kind in FORMATS)


def to_markdown(found: Sequence[tuple[File, tuple[int, ...]]]) -> str:
    """A row a file, a column a format."""
    lines = [
        f"| model | `export_onnx` | file | {' | '.join(f'`.{kind}`' for kind in FORMATS)} |",
        f"|:--|:--|{'--:|' * (1 + len(FORMATS))}",
    ]
    for file, counts in found:
        cells = " | ".join(f"{count / 1e6:.1f} MB" for count in counts)
        lines.append(f"{file.cells} {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Export what is missing, pack everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("speed"), help="of the exported files")
    parser.add_argument("--config", default="yolact_darknet53_config")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    models = Speed(options.folder, options.config)
    table = to_markdown([(file, sizes(models.export(file))) for file in KINDS])
    text = f"{table}\n\n{options.config}; {machine('zstandard')}.\n"
    (options.folder / "sizes.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
