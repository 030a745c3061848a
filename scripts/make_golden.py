"""Write tests/golden: numbers of the original YOLACT on inputs that this project makes.

Each file pins one part, as tests/golden/README.md says. The same checkout and the same versions
give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# the fill recipe of the weights lives with the tests
sys.path.append(str(ROOT / "tests"))

from golden import (  # noqa: E402
    accuracy,
    augmenting,
    commands,
    detection,
    instances,
    losses,
    network,
    reference,
    resnets,
    settings,
    steps,
)

WRITERS = {
    "state_dict.json": network.write_state_dict,
    "forward.npz": network.write_forward,
    "priors.npz": network.write_priors,
    "resnet.npz": resnets.write_resnets,
    "box_ops.npz": detection.write_box_ops,
    "detect.npz": detection.write_detect,
    "postprocess.npz": instances.write_postprocess,
    "loss.npz": losses.write_loss,
    "train_trace.json": steps.write_trace,
    "augmentation.npz": augmenting.write_augmentation,
    "ap.json": accuracy.write_ap,
    "config.json": settings.write_config,
    "cli_options.json": commands.write_options,
}


def main() -> None:
    """Write all files, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a git checkout of neuralmagic/yolact")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden")
    parser.add_argument("--only", nargs="+", choices=sorted(WRITERS), default=list(WRITERS))
    options = parser.parse_args()
    # sums in one order, so that every run gives the same bits
    torch.set_num_threads(1)
    original = reference.load(options.checkout.resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        WRITERS[name](original, options.out)
        print(f"{(options.out / name).stat().st_size:>9,}  {name}", flush=True)


if __name__ == "__main__":
    main()
