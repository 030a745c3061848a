"""Weights of other origins: found, given this network's names, or recognised as something else.

Programs wrap weights in dicts of their own, put words before the names, and some have the same
DarkNet-53 under other names. What is none of that is named by its first bytes or by its names.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from yolact.config import BackboneConfig

State = Mapping[str, Tensor]

BLOCKS = BackboneConfig().stage_blocks
"""Residual blocks in each stage of DarkNet-53."""
LARGEST = 20
"""Times its size that a file may become in memory: none of real weights comes near it."""
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
_HEAD = re.compile(r"((?:.*\.)?)prediction_layers\.\d+\.")
_STEM = re.compile(r"((?:.*\.)?)_preconv\.[01]\.")
_STAGE = re.compile(r"((?:.*\.)?)layers\.\d+\.0\.[01]\.")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SETTINGS = {"argparse", "collections", "datetime", "enum", "pathlib", "types", "typing"}
"""Modules of Python whose types hold settings."""
_VALUES = re.compile(
    r"_codecs\.encode|builtins\.(bool|dict|float|int|list|object|set|slice|str|tuple)"
    r"|torch\.(optim|amp|cuda\.amp)\..*"
)
"""Types of plain values, and what a run needs besides the network."""


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
        state: Of a YOLACT model, or of a DarkNet-53 alone, under any names.

    Returns:
        A model's weights as ``Yolact.state_dict()`` names them, those of a backbone alone as
        ``Yolact.backbone.state_dict()`` does; all others unchanged.
    """
    plain = {_WRAPPED_BACKBONE.sub("backbone.", _INSIDE.sub("", n)): v for n, v in state.items()}
    inside = () if plain.keys() == state.keys() else ("without what compiling put into them",)
    anchors = [[m[1] for name in plain if (m := a.match(name))] for a in (_HEAD, _STEM, _STAGE)]
    prefixes = next((found for found in anchors if found), None)
    if prefixes is None:
        return _same_network(plain) or Adapted(plain, inside)
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


def _same_network(state: State) -> Adapted | None:
    """The weights of a DarkNet-53 that has other names, under ours."""
    for project in _PROJECTS:
        names = _by_names(state, project)
        if names:
            return _renamed(state, names, f"{project.name}'s DarkNet-53", project.note)
    for order in (list(state), sorted(state, key=_naturally)):
        names = _by_order(state, order)
        if names:
            return _renamed(state, names, "a DarkNet-53, told by order and shapes", "")
    return None


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


_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
"""Of a ResNet: (blocks of its third stage, whether a block has three convolutions) -> layers."""
_OTHERS = (
    (r"conv_exp\.|conv_transition", "CSPDarkNet, which is not DarkNet-53"),
    (r"(^|\.)backbone\.dark[2-5]\.|backbone\.backbone\.dark", "YOLOX"),
    (r"(^|\.)model\.\d+\.(conv|cv\d|m|bn|proto|c)\b", "a YOLO model of Ultralytics"),
    (r"(^|\.)image_encoder\.|mask_decoder\.", "Segment Anything"),
    (r"(^|\.)patch_embed\.|cls_token|attn\.qkv", "a vision transformer"),
    (r"(^|\.)query_embed\.|transformer\.decoder\.", "DETR"),
    (r"(^|\.)features\.\d+\.", "VGG, MobileNet or the like"),
    (r"(^|\.)stages\.\d+\.blocks\.\d+\.", "another network of timm"),
)


def other_network(names: Iterable[str]) -> str | None:
    """What weights are of, when they are recognised as something else than YOLACT on DarkNet-53.

    >>> other_network(["backbone.dark2.0.conv.weight"])
    'YOLOX'
    """
    listed = list(names)
    if any(re.search(r"(^|\.)_preconv\.[01]\.", name) for name in listed):
        return None
    resnet = _resnet(listed)
    if any(_HEAD.match(name) for name in listed):
        plus = any(re.search(r"maskiou_net|conv_offset_mask", name) for name in listed)
        own = any(re.search(r"backbone\.layers\.\d+\.0\.[01]\.", name) for name in listed)
        some = any(re.match(r"(.*\.)?backbone\.", name) for name in listed)
        backbone = resnet or ("another backbone" if some and not own else None)
        return backbone and f"YOLACT{'++' * plus} on {backbone}"
    if resnet and any(re.search(r"roi_heads?\.|rpn", name) for name in listed):
        return f"Mask R-CNN or Faster R-CNN on {resnet}"
    if resnet:
        return resnet
    return next((what for p, what in _OTHERS if any(re.search(p, n) for n in listed)), None)


def _resnet(names: Iterable[str]) -> str | None:
    """Which ResNet has these names: torchvision's, detectron2's or those in YOLACT."""
    third = re.compile(r"(?:.*\.)?(?:layers\.2|layer3|res4)\.(\d+)\.conv([123])\.weight")
    found = [match for name in names if (match := third.match(name))]
    if not found:
        return None
    blocks = 1 + max(int(match[1]) for match in found)
    depth = _DEPTHS.get((blocks, any(match[2] == "3" for match in found)))
    return f"ResNet-{depth}" if depth else "a ResNet"


_BEGINNINGS = (
    (rb"\s*<(!doctype|html|head|body|\?xml)", "a web page, as a failed download leaves one"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file: git lfs pull fetches it"),
    (rb"\x89HDF", "a file of Keras or another program that writes HDF5"),
    (rb"\x08[\x01-\x1f](\x12|\x1a|\x3a|\x22)", "an ONNX file: let its name end in .onnx"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "compressed: unpack it"),
    (rb".{257}ustar", "a tar archive: unpack it"),
    (rb"\x00{4}[\x01\x02]\x00{3}.\x00{3}", "weights of the program darknet, not of PyTorch"),
    (rb"\x93NUMPY", "an array of NumPy"),
)
"""How files begin that are taken for weights of PyTorch."""


def other_kind_of_file(path: Path) -> str | None:
    """What a file is, in words, when it is neither of PyTorch nor of safetensors; else None.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(512)
    if not begin:
        return "empty"
    if begin.startswith(b"PK") and zipfile.is_zipfile(path):
        return _other_kind_of_archive(path)
    if begin.startswith((b"PK", b"\x80")) or is_safetensors(begin):
        return None
    for pattern, what in _BEGINNINGS:
        if re.match(pattern, begin, re.IGNORECASE | re.DOTALL):
            return what
    return f"not a file of PyTorch, it begins with {begin[:15]!r}"


def is_safetensors(begin: bytes) -> bool:
    """Whether a file that begins so has the format safetensors: a length, then JSON."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 2**30


def _other_kind_of_archive(path: Path) -> str | None:
    """What a zip archive is, when it is not one that ``torch.save`` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, inside = archive.namelist(), sum(e.file_size for e in archive.infolist())
    except Exception:  # damaged: torch says how
        return None
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return "a program of TorchScript, not weights: save the state_dict"
    if "model.weights.h5" in ends:
        return "a model of Keras"
    if "data.pkl" not in ends:
        return f"a zip archive of {len(names)} files: unpack it (first: {', '.join(names[:1])})"
    if inside > LARGEST * path.stat().st_size + 2**20:
        return f"an archive that would become {inside:,} bytes"
    return None


class Unread:
    """Stands for an object of another program, so that the tensors beside it can be read.

    Nothing of that program is imported or called, and what the object held is dropped.
    """

    def __new__(cls, *_: object, **__: object) -> Unread:
        """Take whatever the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take whatever the object was."""


class UnreadDict:
    """The same for a kind of dict, which becomes a plain one."""

    def __new__(cls, *_: object, **__: object) -> dict[Any, Any]:  # type: ignore[misc]
        """Take whatever the dict was made of."""
        return {}


def stand_ins(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What ``torch.load`` may put in place of objects that hold the settings of other programs.

    Args:
        names: Full names of classes and functions.

    Returns:
        A harmless type for each name; nothing when one is of a layer, or of a module of Python
        that has no place in a file of weights.
    """
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for name in names:
        module = name.partition(".")[0]
        inner = {"__builtin__", "copy_reg", "torch", *sys.stdlib_module_names}
        if module in inner - _SETTINGS and not _VALUES.fullmatch(name):
            return []
        found.append((UnreadDict if re.search(r"(?i)dict|cfgnode", name) else Unread, name))
    return found
