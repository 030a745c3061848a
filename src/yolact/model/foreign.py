"""Weights of other origins: found, and given this network's names.

Programs wrap weights in dicts of their own, put words before the names, and some have the same
DarkNet-53 or ResNet under other names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from yolact.config import BackboneConfig
from yolact.model.identify import DETECTOR, HEAD, State

BLOCKS = BackboneConfig().stage_blocks
"""Residual blocks in each stage of DarkNet-53."""
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("model_state_dict", "state_dict", "model", "net", "network", "module", "weights", "params"),
)
"""Keys under which programs keep weights; averaged weights first, as they are what is used."""
_NOT_WEIGHTS = re.compile(r"opt|.*(optim|sched|scaler|rng)|lr_|amp|random|callbacks|loops|state$")
"""Keys under which they keep the state of other things."""
_INSIDE = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What compiling and sharding put anywhere into names."""
_WRAPPED_BACKBONE = re.compile(r"\bbackbone\.module\.")
_STEM = re.compile(r"((?:.*\.)?)_preconv\.[01]\.")
_STAGE = re.compile(r"((?:.*\.)?)layers\.\d+\.0\.(?:[01]|conv3)\.")
_TORCHVISION = re.compile(r"((?:.*\.)?)layer1\.0\.conv3\.weight")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

_LITE_PARTS = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
"""Layers of a block of EfficientNet-Lite, as its published weights call them."""


class Adapted(NamedTuple):
    """Weights under the names of this network."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    """What was done to the names, in words; empty when nothing was."""


class _Project(NamedTuple):
    """The names that another program has for DarkNet-53."""

    name: str
    layer: str
    """Matches a layer; its groups are stem, down, or stage, block and conv."""
    first: tuple[int, int]
    """Numbers of the first down-sampling layer and of the first stage of blocks."""
    parts: tuple[str, str] = ("conv", "bn")
    """Names of the convolution and of the batch norm in a layer."""
    note: str = ""


_PROJECTS = (
    _Project(
        "timm",
        r"(?P<stem>stem\.conv1)|stages\.(?P<down>\d)\.conv_down"
        r"|stages\.(?P<stage>\d)\.blocks\.(?P<block>\d)\.conv(?P<conv>[12])",
        first=(0, 0),
        note="it was trained on inputs normalised by ImageNet's mean and deviation and with leaky "
        "ReLUs of slope 0.01, here inputs are 0 to 1 and the slope is 0.1",
    ),
    _Project(
        "mmdetection",
        r"(?P<stem>conv1)|conv_res_block(?P<down>\d)\.conv"
        r"|conv_res_block(?P<stage>\d)\.res(?P<block>\d)\.conv(?P<conv>[12])",
        first=(1, 1),
    ),
    _Project(
        "PyTorch-Darknet53",
        r"(?P<stem>conv1)|conv(?P<down>[2-6])"
        r"|residual_block(?P<stage>\d)\.(?P<block>\d)\.layer(?P<conv>[12])",
        first=(2, 1),
        parts=("0", "1"),
        note="it was trained with leaky ReLUs of slope 0.01, here the slope is 0.1",
    ),
)


def find_weights(content: Any, depth: int = 4) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """The weights in what a file holds.

    Args:
        content: Anything that was unpickled.
        depth: How many dicts may be around them.

    Returns:
        The keys that lead to the mapping from names to tensors, and this mapping without values
        that are no tensors; None when there is none.
    """
    if not isinstance(content, Mapping) or not depth:
        return None
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors and not any(isinstance(value, Mapping) for value in content.values()):
        return (), tensors
    known = [key for key in _WRAPPERS if key in content]
    for key in [*known, *(key for key in content if key not in known)]:
        if isinstance(key, str) and not _NOT_WEIGHTS.match(key):
            found = find_weights(content[key], depth - 1)
            if found is not None:
                return (key, *found[0]), found[1]
    return None


def adapt(state: State) -> Adapted:
    """Give weights the names of this network, as far as they are those of its layers.

    Args:
        state: Of a YOLACT model, or of a DarkNet-53, ResNet or EfficientNet-Lite alone, under any
            names.

    Returns:
        A model's weights as ``Yolact.state_dict()`` names them, those of a backbone alone as
        ``Yolact.backbone.state_dict()`` does; all others unchanged.
    """
    plain = {_WRAPPED_BACKBONE.sub("backbone.", _INSIDE.sub("", n)): v for n, v in state.items()}
    inside = () if plain.keys() == state.keys() else ("without what compiling put into them",)
    anchors = [[m[1] for name in plain if (m := a.match(name))] for a in (HEAD, _STEM, _STAGE)]
    prefixes = next((found for found in anchors if found), None)
    if prefixes is None:
        return _resnet(plain) or _same_network(plain) or Adapted(plain, inside)
    prefix = _chosen(prefixes)
    if not prefix:
        return Adapted(plain, inside)
    own = {n.removeprefix(prefix): v for n, v in plain.items() if n.startswith(prefix)}
    notes = (*inside, f"without {prefix!r}")
    others = len(plain) - len(own)
    return Adapted(own, (*notes, f"{others} others left out") if others else notes)


def _chosen(prefixes: list[str]) -> str:
    """The prefix of the network to take: an averaged one, else the one named first."""
    averaged = [prefix for prefix in prefixes if re.search(r"\bema|ema\b|_ema_", prefix)]
    return (averaged or prefixes)[0]


def _resnet(state: State) -> Adapted | None:
    """The weights of a ResNet as torchvision names them, under ours; its classifier left out."""
    prefixes = [match[1] for name in state if (match := _TORCHVISION.fullmatch(name))]
    if not prefixes or any(DETECTOR.search(name) for name in state):
        return None
    before = re.escape(_chosen(prefixes))
    pattern = re.compile(
        rf"{before}(?:layer(?P<stage>[1-4])\.)?(?P<rest>(?:\d+\.)?"
        r"(?:conv\d|bn\d|downsample\.\d)\.\w+)"
    )
    names = {
        name: f"layers.{int(match['stage']) - 1}.{match['rest']}"
        if match["stage"]
        else match["rest"]
        for name in state
        if (match := pattern.fullmatch(name))
    }
    return _renamed(state, names, "torchvision's ResNet", "")


def _same_network(state: State) -> Adapted | None:
    """The weights of a backbone that has other names, under ours."""
    lite = _efficientnet_lite(state)
    if lite:
        return Adapted(lite)
    for project in _PROJECTS:
        names = _by_names(state, project)
        if names:
            return _renamed(state, names, f"{project.name}'s DarkNet-53", project.note)
    for order in (list(state), sorted(state, key=_naturally)):
        names = _by_order(state, order)
        if names:
            return _renamed(state, names, "a DarkNet-53, told by order and shapes", "")
    return None


def _efficientnet_lite(state: State) -> dict[str, Tensor]:
    """Published weights of an EfficientNet-Lite without its classifier; nothing for any others."""
    found = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and block[2] in _LITE_PARTS:
            found[f"blocks.{block[1]}.{_LITE_PARTS[block[2]]}.{block[3]}"] = value
        elif stem := re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", name):
            found[f"stem.{0 if stem[1] == '_conv_stem' else 1}.{stem[2]}"] = value
    return found


def _renamed(state: State, names: Mapping[str, str], what: str, note: str) -> Adapted:
    notes = [f"{what}, renamed"]
    if len(names) < len(state):
        notes.append(f"{len(state) - len(names)} others left out")
    if note:
        notes.append(note)
    return Adapted({new: state[old] for old, new in names.items()}, tuple(notes))


def _by_names(state: State, project: _Project) -> dict[str, str]:
    """Name -> ours, where a project's names make a whole DarkNet-53; else nothing."""
    conv, norm = map(re.escape, project.parts)
    pattern = re.compile(
        rf"(?P<before>(?:.*?\.)??)(?:{project.layer})\.(?:(?P<c>{conv})|{norm})\.(?P<leaf>\w+)"
    )
    matches = [match for name in state if (match := pattern.fullmatch(name))]
    if not matches:
        return {}
    (before, _), *_ = Counter(match["before"] for match in matches).most_common(1)
    names = {
        match[0]: f"{_layer(match, *project.first)}.{0 if match['c'] else 1}.{match['leaf']}"
        for match in matches
        if match["before"] == before
    }
    return names if set(_needed()) <= set(names.values()) else {}


def _layer(match: re.Match[str], first_down: int, first_stage: int) -> str:
    if match["stem"]:
        return "_preconv"
    if match["down"]:
        return f"layers.{int(match['down']) - first_down}.0"
    stage, block = int(match["stage"]) - first_stage, int(match["block"]) + 1
    return f"layers.{stage}.{block}.conv{match['conv']}"


def _layers() -> list[str]:
    """Our names of the layers of DarkNet-53, in the order in which they are computed."""
    names = ["_preconv"]
    for stage, blocks in enumerate(BLOCKS):
        names.append(f"layers.{stage}.0")
        for block in range(1, blocks + 1):
            names += [f"layers.{stage}.{block}.conv{conv}" for conv in (1, 2)]
    return names


def _needed() -> list[str]:
    """Our names of everything in DarkNet-53 but the counters of batch norms."""
    leaves = ("0.weight", *(f"1.{leaf}" for leaf in _NORM[:-1]))
    return [f"{layer}.{leaf}" for layer in _layers() for leaf in leaves]


def _by_order(state: State, order: Iterable[str]) -> dict[str, str]:
    """Name -> ours, where convolutions and batch norms follow each other as in DarkNet-53.

    What comes after it, such as the rest of a detector, does not matter. Widths may be any, but
    each layer has to take what the one before gives.
    """
    order = list(order)
    convs = [name for name in order if state[name].ndim == 4]
    norms = [name.removesuffix(_NORM[2]) for name in order if name.endswith("." + _NORM[2])]
    layers = _layers()
    if min(len(convs), len(norms)) < len(layers):
        return {}
    names: dict[str, str] = {}
    width = 3
    for layer, conv, norm in zip(layers, convs, norms, strict=False):
        out, taken, *kernel = state[conv].shape
        own = {f"{norm}{leaf}": f"{layer}.1.{leaf}" for leaf in _NORM if f"{norm}{leaf}" in state}
        side = 1 if layer.endswith("conv1") else 3
        fits = (
            taken == width
            and kernel == [side, side]
            and {f"{norm}{leaf}" for leaf in _NORM[:-1]} <= own.keys()
        )
        if not fits or any(state[name].shape not in ((out,), ()) for name in own):
            return {}
        names |= {conv: f"{layer}.0.weight"} | own
        width = out
    ends = [i for i, layer in enumerate(layers) if layer.endswith("conv2")]
    halves = all(state[convs[i]].shape[:2] == state[convs[i - 1]].shape[1::-1] for i in ends)
    return names if halves else {}


def _naturally(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``layer10`` after ``layer9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
