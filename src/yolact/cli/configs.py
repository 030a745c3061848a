"""``sparseml.yolact.configs``: the networks that there are, as a table."""

from __future__ import annotations

import json
from typing import Any

import click

from yolact.cli.base import Command
from yolact.presets import BACKBONE_FILES, CONFIGS, named_config
from yolact.sizes import size_words
from yolact.tables import columns


@click.command(
    cls=Command,
    epilog="Example: sparseml.yolact.configs timm:mobilenetv3_large_100",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def configs(names: tuple[str, ...], as_json: bool) -> None:
    """List the networks, their sizes, and where their weights come from.

    NAME is one of the listed, or timm: and the name of a model of the package timm. Sizes are those
    with 80 classes.
    """
    rows = [_row(name) for name in names or CONFIGS]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    head = ("config", "backbone", "pixels", "M parameters", "GMACs", "MB float", "starts with")
    lines = [
        (
            *(row["config"], row["backbone"], row["image_size"]),
            *(f"{row['parameters'] / 1e6:.1f}", f"{row['macs'] / 1e9:.1f}"),
            *(f"{row['bytes'] / 1e6:.1f}", row["weights"]),
        )
        for row in rows
    ]
    click.echo(columns([head, *lines], "<<>>>><"))


def _row(name: str) -> dict[str, Any]:
    from yolact.download.pretrained import origin_of_weights
    from yolact.model.weights import parameter_count
    from yolact.restore import bare_subject
    from yolact.sparsify.check.forecast import count_macs

    config = named_config(name)
    model = bare_subject(config, None).model
    parameters = parameter_count(model)
    return {
        "config": name,
        "backbone": config.model.backbone.name,
        "image_size": size_words(config.model.image_size),
        "parameters": parameters,
        "macs": count_macs(model, config.model.image_size),
        "bytes": 4 * parameters,
        "weights": BACKBONE_FILES.get(config.name)
        or origin_of_weights(config.model.backbone)
        or "random weights",
    }
