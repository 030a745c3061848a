"""Times a file in DeepSparse, once for every line of input: MODEL CORES IMAGES.npy.

Runs in an environment of its own: DeepSparse 1.8.0 needs packages that conflict with ours.
"""

from __future__ import annotations

import sys
import time

import deepsparse
import numpy as np


def main(model: str, cores: str, images: str) -> None:
    """Say ready and what share of operators is supported, then answer lines with milliseconds."""
    inputs = [np.load(images)]
    engine = deepsparse.compile_model(model, batch_size=1, num_cores=int(cores))
    print("ready", engine.fraction_of_supported_ops, flush=True)
    for _line in sys.stdin:
        began = time.perf_counter()
        engine.run(inputs)
        print(1e3 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
