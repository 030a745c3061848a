"""Outputs of a graph in another release of ONNX Runtime: MODEL SAMPLE.npz RESULT.npz."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def main(model: str, sample: str, result: str) -> None:
    """Run the sample's ``input``, write the outputs by name."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"input": np.load(sample)["input"]})
    np.savez(result, **dict(zip(names, outputs, strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
