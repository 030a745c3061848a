"""What may stand beside the removal of channels in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify.catalog import facts_of


def require_alone(modifiers: Sequence[Any], label: str) -> None:
    """Refuse stages in which other modifiers need a network that keeps its channels.

    Args:
        modifiers: Of one stage, of either engine.
        label: What to call the recipe in errors.

    Raises:
        RecipeError: Weights are pruned in the same stage, or quantized before thinning ends.
    """
    facts = [(facts_of(type(modifier).__name__), modifier) for modifier in modifiers]
    ends = [m.end_epoch for f, m in facts if f.kind == "thinning" and not f.removes_layers]
    if not ends:
        return
    if any(f.kind in ("pruning", "constant") for f, _ in facts):
        raise RecipeError(
            f"{label} prunes weights and removes channels in one stage",
            hint="remove channels in a first run, and prune its checkpoint in a second",
        )
    end = max(ends)
    if any(f.kind == "quantization" and modifier.start_epoch < end for f, modifier in facts):
        raise RecipeError(
            f"{label} quantizes before the last channels are removed, at epoch {end:g}",
            hint="let the QuantizationModifier start when the ChannelThinningModifier has ended",
        )
