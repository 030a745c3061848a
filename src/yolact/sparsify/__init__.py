"""Recipes: pruning and quantization while a model trains. The one room that imports sparseml."""

from yolact.sparsify.check.fit import check_against
from yolact.sparsify.check.predict import count_macs
from yolact.sparsify.distillation import (
    DistillationSchedule,
    LayerDistillation,
    OutputDistillation,
)
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.gradients import GradientSamples
from yolact.sparsify.proof.report import LayerReport, ModelReport, report, report_path, save_report
from yolact.sparsify.proof.sparsity import (
    LayerSparsity,
    SparsityTarget,
    layer_sparsity,
    missed_targets,
    overall_sparsity,
    sparsity_targets,
)
from yolact.sparsify.recipe import Recipe, load_recipe
from yolact.sparsify.structure import apply_structure
from yolact.sparsify.text.arguments import parse_recipe_args
from yolact.sparsify.text.sources import packaged_recipes

__all__ = [
    "DistillationSchedule",
    "LayerDistillation",
    "GradientSamples",
    "LayerReport",
    "LayerSparsity",
    "ModelReport",
    "OutputDistillation",
    "Recipe",
    "RecipeDriver",
    "SparsityTarget",
    "apply_structure",
    "check_against",
    "count_macs",
    "layer_sparsity",
    "load_recipe",
    "missed_targets",
    "overall_sparsity",
    "packaged_recipes",
    "parse_recipe_args",
    "report",
    "report_path",
    "save_report",
    "sparsity_targets",
]
