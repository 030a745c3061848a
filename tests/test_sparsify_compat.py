"""Importing and running sparseml leaves no trace; every patch of it is still needed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.ao.quantization import MovingAverageMinMaxObserver, QConfig

from conftest import ROOT
from recipe_engines import needs_sparseml
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import load_recipe

WATCH = """
import json, os, sys
seen = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        seen.append([event, repr(args)])
        raise OSError("no network in this test")
    if event == "open" and isinstance(args[0], str) and set(args[1] or "") & set("wax+"):
        if os.path.abspath(args[0]).startswith(os.getcwd()):
            seen.append([event, args[0]])
sys.addaudithook(hook)
"""

RUN = (
    WATCH
    + """
import torch
from yolact.sparsify.driver import RecipeDriver
from yolact.sparsify.recipe import load_recipe
recipe = load_recipe('''
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}
  - !LearningRateFunctionModifier
    {start_epoch: 0, end_epoch: 2, lr_func: linear, init_lr: 0.1, final_lr: 0.01}
  - !GMPruningModifier {start_epoch: 0, end_epoch: 1, init_sparsity: 0.1, final_sparsity: 0.5,
                        update_frequency: 0.5, params: __ALL_PRUNABLE__}
  - !QuantizationModifier {start_epoch: 1}
''')
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
driver = RecipeDriver(recipe)
driver.start(model, optimizer, 0, 2)
for step in range(4):
    driver.before_forward(model, optimizer, step / 2)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    driver.before_step(model, optimizer, step / 2)
    optimizer.step()
    driver.after_step(model, optimizer, step / 2)
driver.finish(model)
assert not seen, seen
assert os.listdir() == []
"""
)

UNPATCHED = (
    WATCH
    + """
import logging, runpy, sys, torch, warnings
warnings.simplefilter("ignore")
compile = torch.compile
shims = runpy.run_path(sys.argv[1])["shims"]()
shims.__enter__()
from sparseml.pytorch.utils import LoggerManager
LoggerManager([])
print(json.dumps({
    "asks where it is": any("ident.me" in args for _, args in seen),
    "takes over the main logger": bool(logging.getLogger("__main__").handlers),
    "logs to the console": bool(logging.getLogger("sparseml").handlers),
    "replaces torch.compile": torch.compile is not compile,
    "opens a log file": os.listdir() == ["sparse_logs"],
}))
"""
)


def run(code: str, cwd: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "HOME": str(cwd.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_recipe_runs_without_network_files_or_output(empty: Path) -> None:
    result = run(RUN, empty)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_sparseml
@pytest.mark.slow
def test_what_importing_patches_is_still_broken(empty: Path) -> None:
    result = run(UNPATCHED, empty, ROOT / "src" / "yolact" / "sparsify" / "sparseml" / "shims.py")
    broken = json.loads(result.stdout.splitlines()[-1])
    assert all(broken.values()), f"a patch of sparsify/sparseml is no longer needed: {broken}"


def test_torch_still_refuses_attributes_on_a_qconfig() -> None:
    qconfig: Any = QConfig(activation=None, weight=None)  # type: ignore[no-untyped-call]
    with pytest.raises(AttributeError):
        qconfig.quantization_scheme = 1


def test_torch_observers_still_learn_during_evaluation() -> None:
    observer = MovingAverageMinMaxObserver()
    with torch.no_grad():
        observer(torch.tensor([-1.0, 1.0]))
    assert observer.min_val == -1


@needs_sparseml
def test_sparseml_still_steps_its_scheduler_before_the_optimizer() -> None:
    recipe = load_recipe(
        "- !LearningRateModifier {start_epoch: 0, lr_class: ExponentialLR, "
        "lr_kwargs: {gamma: 0.5}, init_lr: 0.1}\n"
    )
    model = torch.nn.Conv2d(1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = RecipeDriver(recipe)
    driver.start(model, optimizer, 0, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(3):
            driver.before_forward(model, optimizer, epoch)
    assert "Detected call of `lr_scheduler.step()`" in str(caught[0].message)
