"""Recipes as data: YAML with modifier tags to plain records and back.

A document is a dict. Lists under keys that contain ``modifiers`` hold :class:`Entry` records; a
staged document nests such lists one level deeper, one dict per stage, in the order of the stages.
:func:`matches`, :func:`nm_of` and :func:`is_number` read what the fields of a record say.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from yolact.errors import RecipeError

Document = dict[str, Any]

FROM_PARAM = "__FROM_PARAM__"
"""The ``init_sparsity`` that stands for what each parameter has at the start."""

NM_TOLERANCE = 0.01
"""How far a sparsity may be from that of N:M masks, as in sparseml."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One modifier of a recipe: ``!GMPruningModifier`` and its fields."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Safe YAML, with any ``!Tag`` as an Entry and 1e-3 as the number it is in YAML 1.2."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.keys = 0
        self.repeated: list[str] = []
        """Keys that a mapping has twice, and the lines where they stand again."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; of a key that it has twice, the last value counts."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                self.repeated.append(f"{key.value!r} again at line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        self.keys += len(node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write shared lists out: anchors would only make a recipe harder to read."""
        return True


def _entry(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Entry:
    tag = tag.removeprefix("pytorch.")
    if isinstance(node, yaml.MappingNode):
        return Entry(tag, {str(k): v for k, v in loader.construct_mapping(node, deep=True).items()})
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return Entry(tag)
    raise yaml.constructor.ConstructorError(
        None, None, f"the fields of !{tag} are not a mapping", node.start_mark
    )


# sparseml registers !pytorch. tags with yaml's own loader, to build its objects.
_Loader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if not str(tag).startswith("!")
}
_Loader.add_multi_constructor("!", _entry)
for _kind in (_Loader, _Dumper):  # the writer quotes text that would be read as a number
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
_Dumper.add_representer(
    Entry, lambda dumper, entry: dumper.represent_mapping(f"!{entry.name}", entry.fields)
)


def parse(text: str, label: str) -> Document:
    """Read a recipe from YAML; messages call it ``label``.

    Raises:
        RecipeError: It is not YAML, or is not a mapping.
    """
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            f"{label} is not valid YAML{where}: {problem}",
            hint="check indentation, colons and quotes there",
        ) from error
    if loader.repeated:
        logger.warning(
            "%s: %d of %d keys are given twice, the last value counts (first: %s)",
            *(label, len(loader.repeated), loader.keys, ", ".join(loader.repeated[:3])),
        )
    if _contains_itself(content):
        raise RecipeError(
            f"{label} has an alias inside its own anchor", hint="write the value out there"
        )
    if isinstance(content, Entry):
        content = [content]
    if isinstance(content, list):
        content = {"modifiers": content}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{label} is not a recipe",
            hint="expected lists of !Modifier entries under keys like pruning_modifiers",
        )
    return _listed({k: _listed(v) if is_stage(v) else v for k, v in content.items()})


def _listed(content: dict[Any, Any]) -> Document:
    """The same with every modifier that stands alone under a key as a list of one."""
    listed: Document = {}
    for key, value in content.items():
        alone = isinstance(value, Entry)
        name = str(key) if "modifiers" in str(key) or not alone else f"{key}_modifiers"
        listed[name] = [value] if alone else value
    return listed


def _contains_itself(value: Any, above: frozenset[int] = frozenset()) -> bool:
    if isinstance(value, Entry):
        value = value.fields
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return False
    inside = above | {id(value)}
    return id(value) in above or any(_contains_itself(part, inside) for part in parts)


def parse_value(text: str) -> Any:
    """One value as YAML reads it: ``2``, ``1e-3``, ``[1, 4]``, ``unstructured``."""
    return yaml.load(text, _Loader)


def dump(document: Document) -> str:
    """YAML that :func:`parse` reads back to an equal document."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)
    return text


def stages(document: Document) -> dict[str, Document]:
    """The document's stages in order; an unstaged document is one stage without a name."""
    found = {key: value for key, value in document.items() if is_stage(value)}
    return found or {"": document}


def entry_lists(stage: Document) -> dict[str, list[Entry]]:
    """The modifier lists of a stage by key."""
    return {
        key: value for key, value in stage.items() if "modifiers" in key and isinstance(value, list)
    }


def entries(document: Document) -> Iterator[Entry]:
    """All modifiers of all stages."""
    for stage in stages(document).values():
        for items in entry_lists(stage).values():
            yield from items


def is_stage(value: Any) -> bool:
    """Whether a document's value is a stage and not a variable."""
    return isinstance(value, dict) and any("modifiers" in str(key) for key in value)


_TOKENS = ("__ALL__", "__ALL_PRUNABLE__")


def matches(pattern: str, name: str) -> bool:
    """Whether a recipe's name, ``re:`` expression or token stands for the parameter ``name``."""
    if pattern in _TOKENS:
        return True
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name


def nm_of(mask_type: Any) -> tuple[int, int] | None:
    """N and M of a ``mask_type`` such as ``2:4``, or None."""
    if mask_type == "tensorrt":
        return 2, 4
    found = re.fullmatch(r"(\d+):(\d+)", str(mask_type))
    return (int(found[1]), int(found[2])) if found else None


def is_number(value: Any) -> bool:
    """Whether the value of a field is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
