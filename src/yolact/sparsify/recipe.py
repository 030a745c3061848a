"""Recipes: one object from the moment a text is read until a checkpoint stores it again.

Texts come from a file, from this package, from the caller or from a checkpoint. They are parsed
here and nowhere else.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from yolact.errors import RecipeError
from yolact.sparsify import document as documents
from yolact.sparsify.catalog import EngineName
from yolact.sparsify.document import Document, Entry
from yolact.sparsify.engine import Manager
from yolact.sparsify.modifiers import build_manager
from yolact.sparsify.recipe_engines import default_engine, recipe_engine
from yolact.sparsify.variables import override, resolve

_SUFFIXES = (".md", ".yaml", ".yml")

_FENCE = re.compile(r"^[ \t]*(?:-{3,}|\+{3,})[ \t]*(?:#.*)?$", re.MULTILINE)
"""A line before or after front matter."""

_OF_SPARSEML = re.compile(r"^\s*(?:---|\+\+\+)(.*?)(?:---|\+\+\+)", re.DOTALL | re.MULTILINE)
"""What sparseml takes for front matter, whatever else is on its last line."""

_OF_A_RECIPE = re.compile(
    r"^[ \t]*(?:[\w-]*modifiers[\w-]*[ \t]*:|(?:(?:[\w-]+:|-)[ \t]*)?!\w)", re.MULTILINE
)
"""A line that a recipe has, and the metadata of a model card have not."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read, every variable resolved; nobody changes its document."""

    document: Document
    """Lists of modifiers by key, one level deeper when there are stages."""
    label: str = field(compare=False)
    """What messages call it."""
    engine: EngineName | None = field(default=None, compare=False)
    """Who runs it; None stands for sparseml where that can be imported, else our own."""

    @classmethod
    def of_text(cls, text: str, label: str, engine: EngineName | None = None) -> Recipe:
        """The YAML that a checkpoint stores, as an object; it was checked when it was given.

        Raises:
            RecipeError: It is no recipe, or its variables cannot be computed.
        """
        return cls(resolve(documents.parse(text, label), label), label, engine)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All modifiers of all stages, in order."""
        return tuple(documents.entries(self.document))

    @cached_property
    def stages(self) -> dict[str, Document]:
        """Its stages by name, in order; without stages, one that has no name."""
        return documents.stages(self.document)

    @cached_property
    def text(self) -> str:
        """YAML, as checkpoints store it; loading it gives an equal recipe."""
        return documents.dump(self.document)

    def manager(self) -> Manager:
        """The engine's manager of all modifiers; a new one each time, for they have state.

        Raises:
            RecipeError: There are no modifiers, or one is unknown, cannot be used, has unknown or
                missing fields or impossible values; or the engine is not there.
        """
        return build_manager(self.document, self.label, recipe_engine(self.engine_name))

    @property
    def engine_name(self) -> EngineName:
        """The engine that runs it."""
        return self.engine or default_engine()

    def of(self, entries: Iterable[Entry]) -> Recipe:
        """A recipe of some of its modifiers, in one stage."""
        return replace(self, document={"modifiers": list(entries)})


def load_recipe(
    source: str,
    recipe_args: Mapping[str, Any] | None = None,
    label: str | None = None,
    engine: EngineName | None = None,
) -> Recipe:
    """Read a recipe and check everything that can be checked without a model.

    Args:
        source: Path of a ``.md`` (YAML front matter) or ``.yaml`` file, the short name of a
            packaged recipe such as ``yolact.pruned``, or YAML text.
        recipe_args: Values for the recipe's variables, e.g. ``{"num_epochs": 2}``.
        label: What messages call it, such as the stub that ``source`` is the file of; None lets
            its path or name say so.
        engine: Who runs it; None stands for sparseml where that can be imported, else our own.

    Raises:
        RecipeError: The recipe is missing, is not YAML, is empty, names unknown modifiers, fields
            or variables, or has impossible values.
    """
    document, label = read_document(source, label)
    if recipe_args:
        document = override(document, recipe_args, label)
    recipe = Recipe(resolve(document, label), label, engine)
    recipe.manager()
    return recipe


def read_document(source: str, label: str | None = None) -> tuple[Document, str]:
    """A recipe as it is written, with its variables, and what messages call it.

    ``source`` and ``label`` are as for :func:`load_recipe`.

    Raises:
        RecipeError: It is missing, empty or not YAML.
    """
    text, own_label = read_source(source)
    label = label or own_label
    if not text.strip():
        raise RecipeError(f"{label} is empty", hint="a recipe is a list of modifiers in YAML")
    return documents.parse(text, label), label


def packaged_recipes() -> list[str]:
    """Short names of the recipes in this package, for instance ``yolact.pruned``.

    Markdown files without front matter describe recipes and are none.
    """
    files = [f for f in resources.files("yolact.recipes").iterdir() if f.name.endswith(".md")]
    recipes = [f.name for f in files if _front_matter(f.read_text("utf-8")) is not None]
    return sorted(name.removesuffix(".md") for name in recipes)


def read_source(source: str) -> tuple[str, str]:
    """The YAML of a recipe, and what messages call it.

    Args:
        source: Path of a Markdown file with YAML front matter or of a YAML file, a name from
            :func:`packaged_recipes`, or the recipe itself (recognised by its line breaks).

    Raises:
        RecipeError: Nothing is there, or it cannot be read.
    """
    if "\n" in source or "\r" in source:
        text = _lines(source)
        return _front_matter(text) or text, "the recipe"
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path), str(path)
    name = source.removesuffix(".md")
    if name in packaged_recipes():
        text = resources.files("yolact.recipes").joinpath(f"{name}.md").read_text("utf-8")
        return _front_matter(text) or "", name
    raise RecipeError(f"recipe not found: {source}", hint=_hint_for_missing(name))


def _read_file(path: Path) -> str:
    if path.suffix.lower() not in _SUFFIXES:
        raise RecipeError(
            f"{path} is neither a .md nor a .yaml file",
            hint="rename it, or pass the checkpoint with --resume or --ckpt"
            if path.suffix == ".pth"
            else "rename it to .yaml, or to .md when the YAML is front matter",
        )
    try:
        content = path.read_bytes()
        encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"
        text = _lines(content.decode(encoding))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {error}",
            hint="save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "check the file",
        ) from error
    found = _front_matter(text)
    if found is None and path.suffix.lower() != ".md":
        return text
    found = found or _between_marks(text)
    if found is None:
        raise RecipeError(
            f"{path} has no YAML front matter",
            hint="put the recipe between two lines of ---; a file of YAML alone ends in .yaml",
        )
    return found


def _lines(text: str) -> str:
    """The text without a byte order mark, its lines ending as in Unix."""
    return text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n").replace("\r", "\n")


def _front_matter(text: str) -> str | None:
    """The first recipe between two lines of ``---`` or ``+++``, wherever in the text these are.

    Empty lines before it stand for those of the text, so that errors name the right line.
    """
    for begin, end in pairwise(_FENCE.finditer(text)):
        block = text[begin.end() : end.start()]
        if _OF_A_RECIPE.search(block):
            return "\n" * text.count("\n", 0, begin.end()) + block
    return None


def _between_marks(text: str) -> str | None:
    found = _OF_SPARSEML.search(text)
    return found[1] if found else None


def _hint_for_missing(name: str) -> str:
    names = packaged_recipes()
    near = get_close_matches(Path(name).name, names, n=1)
    if near:
        return f"did you mean {near[0]}, which comes with this package?"
    return f"check the path, or use one of {', '.join(names)}"
