"""What each modifier is: a row for every class of sparseml 1.8 that recipes can name, and for ours.

Whatever has to tell modifiers apart by their class asks here, by the name that recipes use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

EngineName = Literal["sparseml", "native"]
"""Who runs recipes: sparseml's modifiers, or this package's own."""

Kind = Literal["length", "lr", "pruning", "constant", "quantization", "thinning", "other"]
"""What a modifier does: say how long the run is, set learning rates, make weights zero, keep zeros,
quantize, take channels or layers away, or none of these."""


@dataclass(frozen=True, kw_only=True)
class ModifierFacts:
    """What is true of all modifiers of one name."""

    name: str
    """As after the ``!`` in a recipe."""
    kind: Kind = "other"
    sparsities: tuple[str, ...] = ()
    """Fields that are sparsities, 0..1."""
    final: str | None = None
    """The one of them that says how sparse its parameters end."""
    shared: Literal["if told", "unless told", "always"] = "if told"
    """Whether that sparsity is of all its parameters together, spread unevenly over them, or of
    each; the field ``global_sparsity`` may tell."""
    mask: str = "unstructured"
    """``mask_type`` where the recipe gives none."""
    at_once: bool = False
    """Chooses by the weights alone, so it can prune without training."""
    samples: bool = False
    """Computes gradients of training batches itself."""
    remembers: bool = False
    """Prunes by what it has seen, which no checkpoint holds: its masks do not follow from the
    weights alone."""
    by_movement: bool = False
    """Its parameters have to be trained meanwhile: it prunes by how they move, or lets pruned ones
    grow again from zero."""
    momentary: bool = False
    """Without an ``end_epoch`` it acts once, at its ``start_epoch``."""
    optimizer_only: bool = False
    """Changes settings of the optimizer and nothing else."""
    by_neighbours: bool = False
    """Its ``block4`` are four neighbours in memory."""
    removes_layers: bool = False
    """Takes whole layers away."""
    freezes: bool = False
    """Says which parameters are trained."""
    distils: Literal["outputs", "layers"] | None = None
    """What it learns from a teacher: what the network says, or what layers inside it compute."""
    refused: tuple[str, str] | None = None
    """Why it cannot be used, and what to do instead."""


_GRADUAL = ModifierFacts(
    name="from one sparsity to another",
    kind="pruning",
    sparsities=("init_sparsity", "final_sparsity"),
    final="final_sparsity",
)
_BY_GRADIENTS = replace(_GRADUAL, samples=True, remembers=True)

CONSTANT = "ConstantPruningModifier"
"""The modifier that keeps zeros where they are."""

_ROWS = (
    # The run and its optimizer
    ModifierFacts(name="EpochRangeModifier", kind="length"),
    ModifierFacts(name="LearningRateFunctionModifier", kind="lr", optimizer_only=True),
    ModifierFacts(name="LearningRateModifier", kind="lr", optimizer_only=True),
    ModifierFacts(name="SetLearningRateModifier", kind="lr", momentary=True, optimizer_only=True),
    ModifierFacts(name="SetWeightDecayModifier", optimizer_only=True),
    # Pruning
    ModifierFacts(name=CONSTANT, kind="constant", at_once=True),
    replace(_GRADUAL, name="GMPruningModifier", at_once=True),
    replace(_GRADUAL, name="MagnitudePruningModifier", at_once=True),
    replace(_GRADUAL, name="GlobalMagnitudePruningModifier", at_once=True, shared="always"),
    replace(_GRADUAL, name="StructuredPruningModifier", mask="filter", remembers=True),
    replace(_GRADUAL, name="MovementPruningModifier", remembers=True, by_movement=True),
    replace(_BY_GRADIENTS, name="MFACPruningModifier"),
    replace(_BY_GRADIENTS, name="OBSPruningModifier", shared="unless told", by_neighbours=True),
    replace(
        _BY_GRADIENTS,
        name="RigLPruningModifier",
        by_movement=True,
        sparsities=("final_sparsity",),
        shared="always",
    ),
    ModifierFacts(
        name="ACDCPruningModifier",
        kind="pruning",
        sparsities=("compression_sparsity",),
        final="compression_sparsity",
        shared="unless told",
    ),
    ModifierFacts(
        name="TopKASTPruningModifier",
        kind="pruning",
        sparsities=("forward_sparsity", "backward_sparsity"),
        final="forward_sparsity",
        shared="unless told",
        remembers=True,
    ),
    # Other structure
    ModifierFacts(name="ChannelThinningModifier", kind="thinning", at_once=True),
    ModifierFacts(name="LayerPruningModifier", kind="thinning", removes_layers=True),
    ModifierFacts(
        name="LayerThinningModifier",
        kind="thinning",
        refused=(
            "leaves no trace in the recipe of which channels it removed: its checkpoints do not "
            "load",
            "use ChannelThinningModifier, which knows this network's channels",
        ),
    ),
    ModifierFacts(name="QuantizationModifier", kind="quantization"),
    # Parameters, losses and logs
    ModifierFacts(name="GradualParamModifier"),
    ModifierFacts(name="SetParamModifier"),
    ModifierFacts(name="TrainableParamsModifier", freezes=True),
    ModifierFacts(name="DistillationModifier", distils="outputs"),
    ModifierFacts(name="PerLayerDistillationModifier", distils="layers"),
    ModifierFacts(name="SparsificationLoggingModifier"),
    ModifierFacts(
        name="ASRegModifier",
        refused=(
            "has no tag in sparseml, and its penalty is undefined before its first epoch",
            "remove it: no engine here is faster with zeros among the activations",
        ),
    ),
    ModifierFacts(
        name="PowerpropagationModifier",
        refused=(
            "renames the layers it wraps: checkpoints written meanwhile do not load",
            "use GMPruningModifier or ACDCPruningModifier",
        ),
    ),
)

CATALOG = {row.name: row for row in _ROWS}
"""Every row by its modifier's name."""


def facts_of(name: str) -> ModifierFacts:
    """The row of a modifier; of a name that nothing has, a row that promises nothing."""
    return CATALOG.get(name) or ModifierFacts(name=name)
