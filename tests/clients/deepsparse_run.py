"""Outputs of a graph in DeepSparse: MODEL SAMPLE.npz RESULT.npz, both with arrays by name."""

from __future__ import annotations

import sys

import deepsparse
import numpy as np


def main(model: str, sample: str, result: str) -> None:
    """Run the sample's ``input``; also write the share of operators that the engine supports."""
    images = np.load(sample)["input"]
    engine = deepsparse.compile_model(model, batch_size=len(images), num_cores=1)
    outputs = dict(zip(engine.output_names, engine.run([images]), strict=True))
    np.savez(result, supported=engine.fraction_of_supported_ops, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
