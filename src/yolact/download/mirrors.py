"""The user's folders, and his mirror map: where files are that their old addresses do not serve.

The folders are SparseZoo's cache, and this tool's own cache and settings. The map is a YAML or JSON
file. Each key is a stub, or the name of a weights file of YOLACT's author; each value says where
its files are::

    zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco/pruned90-none:
      checkpoint: /models/pruned90.pth
      onnx: {url: https://files.example.org/pruned90.onnx, sha256: 9f86d081...}
    zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco/base-none: ~/zoo/base-none
    darknet53.pth: https://files.example.org/darknet53.pth

A folder is looked into as if it were the model's in SparseZoo's cache. Paths that do not begin at
the root are relative to the map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from yolact.download.stubs import WEIGHTS, Kind, Stub, is_stub, parse_stub
from yolact.errors import ConfigError

VARIABLE = "YOLACT_ZOO_MIRRORS"
_FILE = "mirrors.yaml"
_NAME = "sparseml-yolact"
_KINDS = {"checkpoint": Kind.CHECKPOINT, "onnx": Kind.ONNX, "recipe": Kind.RECIPE}
_ENDINGS = {
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".safetensors"), Kind.CHECKPOINT),
    ".onnx": Kind.ONNX,
    **dict.fromkeys((".md", ".yaml", ".yml"), Kind.RECIPE),
}


@dataclass(frozen=True)
class Place:
    """Where a file is, according to the map."""

    location: str | Path
    """An http(s) address, or a file or folder on this machine."""
    sha256: str | None = None


@dataclass(frozen=True)
class MirrorMap:
    """A mirror map that is known to be well formed."""

    path: Path | None
    """The file it was read from; None when there is none."""
    models: Mapping[tuple[Stub, Kind | None], Place]
    """Kind None: a folder with all of a model's files."""
    weights: Mapping[str, Place]

    def place_of(self, stub: Stub, kind: Kind) -> Place | None:
        """Where the map has a model's file; an entry with the same query is preferred."""
        plain = Stub(stub.model)
        asked = [(stub, kind), (stub, None), (plain, kind), (plain, None)]
        if kind is Kind.RECIPE and stub.recipe == "transfer_learn":
            asked = [(stub, kind), (stub, None), (plain, None)]
        return next((self.models[key] for key in asked if key in self.models), None)


def read_mirrors() -> MirrorMap:
    """The user's mirror map; empty when he has none.

    Raises:
        ConfigError: ``YOLACT_ZOO_MIRRORS`` names no file, or the map has a mistake.
    """
    path = map_path()
    if not path.is_file():
        if os.environ.get(VARIABLE):
            raise ConfigError(
                f"{VARIABLE} names {path}, which is no file", hint="correct or unset the variable"
            )
        return MirrorMap(None, {}, {})
    return _parse(path, _content(path))


def map_path() -> Path:
    """The file that ``YOLACT_ZOO_MIRRORS`` names, or the one in the user's settings folder."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else settings_folder() / _FILE


def zoo_cache() -> Path:
    """Where SparseZoo's client keeps models: ``SPARSEZOO_MODELS_PATH`` or ~/.cache/sparsezoo."""
    return _from_environment("SPARSEZOO_MODELS_PATH") or Path.home() / ".cache" / "sparsezoo"


def settings_folder() -> Path:
    """Where the mirror map and the recorded hashes are: ``XDG_CONFIG_HOME`` or ~/.config."""
    return (_from_environment("XDG_CONFIG_HOME") or Path.home() / ".config") / _NAME


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="check it: a mapping of stubs to places"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{path} is not a mirror map", hint="it maps stubs to files, folders or addresses"
        )
    return content or {}


def _parse(path: Path, content: dict[str, Any]) -> MirrorMap:
    models: dict[tuple[Stub, Kind | None], Place] = {}
    weights: dict[str, Place] = {}
    files = [one.file for one in WEIGHTS.values()]
    for key, value in content.items():
        key = str(key)
        if is_stub(key):
            stub = parse_stub(key, ConfigError)
            models |= {(stub, kind): place for kind, place in _places(path, key, value)}
        elif key in files:
            weights[key] = _place(path, key, value)
        else:
            near = get_close_matches(key, files, n=1)
            raise ConfigError(
                f"{path} has an entry for {key!r}, which is neither a stub nor a weights file",
                hint=f"did you mean {near[0]}?" if near else "stubs begin with zoo:",
            )
    return MirrorMap(path, models, weights)


def _places(path: Path, key: str, value: Any) -> list[tuple[Kind | None, Place]]:
    if isinstance(value, dict) and "url" not in value:
        for name in value:
            if name not in _KINDS:
                near = get_close_matches(str(name), _KINDS, n=1) or list(_KINDS)
                raise ConfigError(f"{path} names {name!r} of {key}", hint=f"try: {', '.join(near)}")
        return [(_KINDS[name], _place(path, key, place)) for name, place in value.items()]
    place = _place(path, key, value)
    kind = _ENDINGS.get(Path(str(place.location)).suffix.lower())
    if kind is None and isinstance(place.location, str):
        raise ConfigError(
            f"{path} does not say what {place.location} is",
            hint=f"name its kind under the stub: {', '.join(_KINDS)}",
        )
    return [(kind, place)]


def _place(path: Path, key: str, value: Any) -> Place:
    entry = {"url": value} if isinstance(value, str) else value
    if (
        not isinstance(entry, dict)
        or not entry.keys() <= {"url", "sha256"}
        or not isinstance(entry.get("url"), str)
    ):
        raise ConfigError(
            f"{path} has no place for {key}: {value!r}",
            hint="give a path or address, or {url: ..., sha256: ...}",
        )
    url, digest = entry["url"], entry.get("sha256")
    if digest is not None and len(str(digest)) != 64:
        raise ConfigError(
            f"{path}: the sha256 of {key} has {len(str(digest))} digits instead of 64",
            hint="take it from sha256sum; quotes keep YAML from reading it as a number",
        )
    local = path.parent / Path(url.removeprefix("file://")).expanduser()
    remote = url.lower().startswith(("http://", "https://"))
    return Place(url if remote else local, None if digest is None else str(digest).lower())
