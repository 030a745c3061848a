"""DeepSparse's own YOLACT pipeline on one image: MODEL IMAGE.npy RESULT.npz.

Runs in an environment of its own: DeepSparse 1.8.0 needs packages that conflict with ours.
"""

from __future__ import annotations

import sys

import numpy as np
from deepsparse import Pipeline


def main(model: str, image: str, result: str) -> None:
    """Write scores, classes, boxes and masks of the objects found."""
    pipeline = Pipeline.create(task="yolact", model_path=model, num_cores=1)
    found = pipeline(images=[np.load(image)])
    np.savez(
        result,
        scores=np.array(found.scores[0]),
        classes=np.array(found.classes[0]),
        boxes=np.array(found.boxes[0]),
        masks=np.array(found.masks[0]) > 0.5,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
