"""Overfit a few real images from random weights: the test that the whole path can learn.

    python scripts/overfit.py data/coco --images 16 --image_size 192

takes the first images of ``annotations/instances_train2017.json``, leaves out objects that are
smaller than 8 px after resizing, trains the full DarkNet-53 network on them without augmentation,
and measures it on the same images with ``sparseml.yolact.validation``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from commands import call

SMALLEST = 8
"""Shortest side of an object that counts, in pixels of the network input."""


def subset(coco: dict[str, Any], images: int, image_size: int) -> dict[str, Any]:
    """The first ``images`` images that keep an object, with the objects that are large enough."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    kept: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        width, height = sizes[annotation["image_id"]]
        sides = annotation["bbox"][2] / width, annotation["bbox"][3] / height
        if min(sides) * image_size >= SMALLEST and not annotation["iscrowd"]:
            kept.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [image for image in coco["images"] if image["id"] in kept][:images]
    return {
        "images": chosen,
        "annotations": [a for image in chosen for a in kept[image["id"]]],
        "categories": coco["categories"],
    }


def main() -> None:
    """Make the subset, train, validate, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="COCO in the tutorial's layout")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fp16", action="store_true", help="mixed precision; bfloat16 on CPUs")
    parser.add_argument("--out", type=Path, default=Path("overfit"))
    options = parser.parse_args()

    info = options.out / "instances.json"
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.data / "annotations" / "instances_train2017.json"
    few = subset(json.loads(source.read_text()), options.images, options.image_size)
    info.write_text(json.dumps(few))
    print(f"{len(few['images'])} images, {len(few['annotations'])} objects", flush=True)

    data = ["--validation_info", info, "--validation_images", options.data / "images"]
    began = time.monotonic()
    call(
        *("train", "--train_info", info, "--train_images", options.data / "images", *data),
        *("--image_size", options.image_size, "--no_augment", "--lr", options.lr),
        *("--clip_grad", 10),  # without ImageNet weights the first gradients can be enormous
        *("--max_iter", options.steps, "--num_workers", 1, "--validation_epoch", -1),
        *("--save_folder", options.out, "--log_folder", options.out / "logs"),
        *(["--fp16"] if options.fp16 else []),
    )
    print(f"trained {options.steps} steps in {(time.monotonic() - began) / 60:.1f} min")
    call("validation", "--trained_model", "latest", "--save_folder", options.out, *data)


if __name__ == "__main__":
    main()
