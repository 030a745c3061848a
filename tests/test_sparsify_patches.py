"""Every patch of a modifier is still needed: without it, sparseml shows the fault."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from conftest import ROOT
from recipe_engines import needs_sparseml

pytestmark = [pytest.mark.slow, needs_sparseml]

FOLDER = ROOT / "src" / "yolact" / "sparsify" / "sparseml"

FAULTS = """
import contextlib, io, json, runpy, sys, torch, warnings
from torch import nn
warnings.simplefilter("ignore")
shims = runpy.run_path(sys.argv[1])["shims"]()
shims.__enter__()
from sparseml.pytorch.sparsification import *
from sparseml.pytorch.sparsification.pruning import *
from sparseml.pytorch.sparsification.pruning.mask_creator import *
from sparseml.pytorch.sparsification.pruning.mask_params import ModuleParamPruningMask
from sparseml.pytorch.sparsification.pruning.modifier_pruning_mfac import MFACPruningParamsScorer
from sparseml.pytorch.sparsification.pruning.modifier_pruning_movement import (
    MovementPruningParamsScorer,
)
from sparseml.pytorch.utils import GradSampler, LambdaLogger, LoggerManager
from sparseml.pytorch.sparsification.quantization import helpers
from sparseml.pytorch.sparsification.quantization.legacy_modifier_quantization import (
    QuantizationModifier as LegacyQuantizationModifier,
)
from sparseml.utils import interpolate

quiet = LoggerManager([LambdaLogger(lambda *_, **__: True, enabled=False)], log_python=False)
window = dict(start_epoch=0, end_epoch=1.4)
found = {}

def raises(kind, action):
    try:
        action()
    except kind:
        return True
    return False

weight = torch.rand(8, 4, 3, 3)
found["_NMMasks"] = NMPruningMaskCreator().create_sparsity_masks([weight], [0.5])[0].shape != (
    weight.shape
)

columns = BlockMaskCreator([1, -1])
columns.group_tensor(weight)
found["_BlockMasks: -1"] = columns.group_tensor(torch.rand(8, 8, 3, 3)).numel() != 8 * 9
square = BlockMaskCreator([2, 2])
scores = torch.tensor([[9.0, 9, 0, 0], [9, 9, 0, 0], [0, 0, 9, 9], [0, 0, 9, 9]])
found["_BlockMasks: two sides"] = not torch.equal(
    square.create_sparsity_masks([scores], [0.5])[0], (scores > 0).float()
)

found["_interpolate"] = raises(
    TypeError, lambda: interpolate(1.67, 0, 1.4, 0.2, 0.8, "inverse_cubic")
)

def lr(function, **more):
    return LearningRateFunctionModifier(function, 0.01, 0.0, **{**window, **more})

found["_linear"] = lr("linear")._linear(5 / 3, 3) < 0
found["_cosine"] = lr("cosine")._cosine(5 / 3, 3) > 0.0005
found["_cyclic_linear"] = lr("cyclic_linear", end_epoch=1.5)._cyclic_linear(4 / 3, 3) < 0

def scheduler(kind, **options):
    return LearningRateModifier(kind, options, 0.1, 0.0)

step = scheduler("StepLR", step_size=0.1, gamma=0.5)
found["_lr_info: step"] = step.corrected_lr_info(3, 0, -1)[1]["step_size"] == 0
warm = scheduler("CosineAnnealingWarmRestarts", cycle_epochs=1.0, lr_min=0.001)
found["_lr_info: T_0"] = not isinstance(warm.corrected_lr_info(3, 0, -1)[1]["T_0"], int)
warm = scheduler("CosineAnnealingWarmRestarts", cycle_epochs=1, lr_min=0.001)
optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
optimizer.param_groups[0]["initial_lr"] = 0.01
warm._check_setup_lr_scheduler(optimizer, 1.0, 3)
found["_setup_scheduler"] = warm._lr_scheduler.base_lrs == [0.01]

at_once = LearningRateModifier("MultiStepLR", {"gamma": 0.5, "milestones": [1]}, 0.1, -1.0)
found["_begin"] = at_once.corrected_lr_info(3, -1.0, -1.0)[1]["milestones"] == [6]

linear = nn.Sequential(nn.Linear(1, 1))
layers = LayerPruningModifier(["0"], start_epoch=1)
layers.initialize(linear, 0, quiet)
layers.finalize(linear)
found["_finalize_layers"] = not isinstance(linear[0], nn.Linear)

linear = nn.Sequential(nn.Linear(1, 1))
gradual = GradualParamModifier(["0.bias"], [0.0], [1.0], 0, 2, 0.1, inter_func="cubic")
gradual.initialize(linear, 0, quiet)
for epoch in (0.0, 1.0):
    gradual.scheduled_update(linear, None, epoch, 2)
found["_update_gradual"] = linear[0].bias.item() == 0.5

def reintroducing(conv):
    masks = ModuleParamPruningMask(
        [conv], UnstructuredPruningMaskCreator(), None, layer_names=["c"], allow_reintroduction=True
    )
    masks.enabled = True
    masks.set_param_masks([torch.zeros_like(conv.weight)])
    return masks

conv = nn.Conv2d(1, 1, 1)
masks = reintroducing(conv)
image = torch.ones(1, 1, 1, 1, requires_grad=True)
found["_create_hooks: in place"] = raises(
    RuntimeError, lambda: nn.functional.relu(conv(image), inplace=True)
)
conv = nn.Conv2d(1, 1, 1)
before = conv.weight.item()
masks = reintroducing(conv)
(conv(image) + conv(image)).sum().backward()
found["_create_hooks: shared"] = conv.weight.item() != before

conv = nn.Conv2d(1, 1, 1).requires_grad_(False)
masks = ModuleParamPruningMask(
    [conv], UnstructuredPruningMaskCreator(), None, layer_names=["c"]
)
found["_trainable: hooks"] = raises(RuntimeError, lambda: setattr(masks, "enabled", True))

kast = TopKASTPruningModifier(0.5, 0.5, 0, 1, 1, ["0.weight"])
model = nn.Sequential(nn.Conv2d(1, 4, 1))
kast.initialize(model, 0, quiet)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in (0.0, 1.0):
    kast.scheduled_update(model, optimizer, epoch, 2)
weight = model[0].weight.data
zero = weight == 0
weight.add_(1.0)  # as momentum does
kast.optimizer_post_step(model, optimizer, 1.5, 2)
found["Top-KAST after its end"] = kast.ended and bool(zero.any()) and bool(
    weight[zero].all()
)

conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
conv(torch.rand(1, 4, 3, 3)).sum().backward()
scorer = MFACPruningParamsScorer([conv.weight], 1, 1e-5, 16, 1, ["cpu"])
found["_contiguous_scorer"] = raises(
    RuntimeError, lambda: scorer.pre_optim_step_update([torch.ones_like(conv.weight)])
)

conv = nn.Conv2d(1, 1, 1)
conv.weight.data.zero_()
conv.weight.grad = torch.full_like(conv.weight, float("inf"))
scorer = MovementPruningParamsScorer([conv.weight])
scorer.pre_optim_step_update([torch.ones_like(conv.weight)])
found["_movement_step"] = bool(scorer.score_parameters()[0].isnan())

shown = io.StringIO()
conv.weight.grad = torch.ones_like(conv.weight)
with contextlib.redirect_stderr(shown):
    sampler = GradSampler([([image], {}, None)], lambda outputs, _: outputs.sum())
    list(sampler.iter_module_backwards(conv, 1))
    conv.bias.requires_grad_(False)
    for _ in sampler.iter_module_backwards(conv, 1):
        found["_trainable: samples"] = conv.bias.grad is None
found["_GradSampler: gradients"] = conv.weight.grad is None
found["_GradSampler: bar"] = "Collecting gradients" in shown.getvalue()

obs = OBSPruningModifier(0.1, 0.5, 0, 1, 1, ["weight"])
found["OBS with one step an epoch"] = obs.check_mask_update(None, 0.5, 1) is None and raises(
    AttributeError, lambda: obs.check_mask_update(None, 0.5, 2)
)

constant = ConstantPruningModifier(["0.weight"])
constant.initialize(model, 0, quiet)
constant.scheduled_update(model, None, 0.0, 2)
found["constant masks anew"] = constant.update_ready(0.5, 2)

outer = helpers._BNWrapper(helpers._BNWrapper(nn.BatchNorm2d(1)))
outer.freeze_bn_stats()
found["_freeze_statistics"] = outer.bn.bn.training
outer.bn.bn.eval()
outer.update_bn_stats()
found["_update_statistics"] = not outer.bn.bn.training

legacy = LegacyQuantizationModifier(start_epoch=0, submodules=["0"])
model = nn.Sequential(nn.Conv2d(1, 1, 1))
legacy.initialize(model, 0, quiet)
found["_enable_legacy"] = all(
    part.module is not model[0] for part in legacy._modules_to_quantize
) and type(model[0]) is not nn.Conv2d
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    folder = tmp_path_factory.mktemp("unpatched")
    environment = {"PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, str(FOLDER / "shims.py")],
        cwd=folder,
        env={**environment, "NM_DISABLE_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, bool] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_sparseml_still_has_every_fault_that_is_patched(faults: dict[str, bool]) -> None:
    gone = sorted(name for name, there in faults.items() if not there)
    assert not gone, f"patches that are no longer needed: {gone}"


def test_every_patch_has_its_fault(faults: dict[str, bool]) -> None:
    text = (FOLDER / "patches.py").read_text()
    documented = re.findall(r":\w+:`(_\w+)`", text)
    assert len(documented) >= 15
    assert set(documented) <= {name.split(":")[0] for name in faults}
