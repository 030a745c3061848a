"""From a stub to a file on this machine.

The places are tried in this order, each cheaper or surer to be what was meant than the next:

1. the local caches, SparseZoo's and our own: the very file the stub named;
2. the user's mirror map: he says what the stub is;
3. known mirrors: ``base-none`` is the release of YOLACT's author;
4. the recipe inside this package, which is the published one in our words. It comes last because
   a file of the zoo may be another version of it.

SparseZoo's service, where these files were, ended in 2025 and is not asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path

from yolact.download.mirrors import map_path, read_mirrors, zoo_cache
from yolact.download.offline import is_offline
from yolact.download.stubs import MODELS, Kind, Stub, parse_stub
from yolact.download.trusted import (
    OtherFileError,
    Validate,
    Wanted,
    fetch_checked,
    fetch_weights,
    require_digest,
)
from yolact.download.zoo_folders import find_in_cache, find_in_folder, place_in_cache
from yolact.errors import DownloadError, YolactError
from yolact.files import cache_folder

log = logging.getLogger(__name__)

_WEIGHTS = Path("weights")
"""Where ``sparseml.yolact.download --weights`` puts weights."""


class _AbsentError(Exception):
    """A place does not have the file; the message says why."""


class _NotFetchedError(_AbsentError):
    """A place has the file, but it could not be fetched from there."""


@dataclass(frozen=True)
class _Search:
    """What is looked for, and with what means."""

    stub: Stub
    kind: Kind
    validate: Validate


def resolve(text: str, *kinds: Kind, validate: Validate) -> Path:
    """The file on this machine that a stub names; fetched first where that is still possible.

    Every place that is tried is logged with its outcome (DEBUG), and the file found (INFO).

    Args:
        text: A stub, see :func:`yolact.download.stubs.parse_stub`.
        kinds: What of the model will do, the preferred kind first. Each place is asked for all of
            them before the next place.
        validate: Reads what is fetched for the first time.

    Raises:
        RecipeError: A recipe was wanted, and the stub is unknown or its recipe gone.
        CheckpointError: The same of a model.
        ConfigError: The user's mirror map has a mistake.
        DownloadError: A file is not the one it was before.
    """
    stub = parse_stub(text, kinds[0].error)
    searches = [_Search(stub, kind, validate) for kind in kinds]
    not_fetched: _NotFetchedError | None = None
    for label, look in _PLACES:
        for search in searches:
            try:
                found = look(search)
            except _AbsentError as reason:
                log.debug("%s: no %s in %s: %s", stub, search.kind.value, label, reason)
                if isinstance(reason, _NotFetchedError):
                    not_fetched = reason
            else:
                log.info("%s: the %s is %s (%s)", stub, search.kind.value, found, label)
                return found
    raise _not_found(searches, not_fetched)


def _from_cache(search: _Search) -> Path:
    roots = (zoo_cache(), cache_folder())
    found = find_in_cache(search.stub, search.kind, roots)
    if found is None:
        raise _AbsentError(f"nothing in {' and '.join(map(str, roots))}")
    return found


def _from_mirrors(search: _Search) -> Path:
    mirrors = read_mirrors()
    if mirrors.path is None:
        raise _AbsentError(f"there is no {map_path()}")
    place = mirrors.place_of(search.stub, search.kind)
    if place is None:
        raise _AbsentError(f"{mirrors.path} does not list it")
    location = place.location
    if isinstance(location, str):
        name = sha256(location.encode()).hexdigest()[:16]  # another address is another file
        target = cache_folder() / "mirrors" / name / place_in_cache(search.stub, search.kind)
        wanted = Wanted(location, search.kind, (location,), place.sha256)
        return _checked(search, wanted, target)
    if location.is_dir():
        found = find_in_folder(location, search.stub, search.kind)
        if found is None:
            raise _AbsentError(f"{location} has none")
        return found
    if not location.is_file():
        log.warning("%s names %s, which does not exist", mirrors.path, location)
        raise _AbsentError(f"{location} does not exist")
    if place.sha256:
        require_digest(location, place.sha256, mirrors.path)
    return location


def _from_known_mirrors(search: _Search) -> Path:
    weights = MODELS[search.stub.model].weights
    if weights is None or search.kind is not Kind.CHECKPOINT:
        raise _AbsentError("none is known")
    if (_WEIGHTS / weights.file).is_file():
        try:
            return fetch_weights(weights, _WEIGHTS, search.validate, offline=True)
        except YolactError as error:  # a run may have left a file of that name
            log.debug("%s", error)
    with _going_on():
        return fetch_weights(weights, cache_folder() / "weights", search.validate)


def _from_package(search: _Search) -> Path:
    if search.kind is not Kind.RECIPE:
        raise _AbsentError("it holds recipes only")
    name = MODELS[search.stub.model].recipes.get(search.stub.recipe or "original")
    file = resources.files("yolact.recipes") / f"{name}.md"
    if name is None or not file.is_file():
        raise _AbsentError("it has no such recipe")
    return Path(str(file))


def _checked(search: _Search, wanted: Wanted, target: Path) -> Path:
    with _going_on():
        return fetch_checked(wanted, target, search.validate)


@contextmanager
def _going_on() -> Iterator[None]:
    """Let the search go on when a file could not be fetched, but not when it is a wrong one."""
    try:
        yield
    except OtherFileError:
        raise
    except DownloadError as error:
        raise _NotFetchedError(str(error)) from error


_PLACES: tuple[tuple[str, Callable[[_Search], Path]], ...] = (
    ("the local cache", _from_cache),
    ("the mirror map", _from_mirrors),
    ("known mirrors", _from_known_mirrors),
    ("this package", _from_package),
)


def _not_found(searches: list[_Search], not_fetched: _NotFetchedError | None) -> YolactError:
    """What to tell the user: what is known of the file, and what to do instead."""
    first = searches[0]
    what = f"the {' or '.join(search.kind.value for search in searches)} of {first.stub}"
    error = first.kind.error
    copy = f"or name a copy in {map_path()}; -v lists where it was looked for"
    if not_fetched is not None and is_offline():
        return error(
            f"{what} is not on this machine, and --offline forbids fetching it",
            hint=f"run this once without --offline, {copy}",
        )
    if not_fetched is not None:
        return error(
            f"{what} is not on this machine, and {not_fetched}",
            hint=f"check the connection and run this again, {copy}",
        )
    published = MODELS[first.stub.model].published
    return error(
        f"{what} is gone: SparseZoo's service has ended, and no copy was found ({published})",
        hint=f"{_instead(first.stub, first.kind)}; {copy}",
    )


def _instead(stub: Stub, kind: Kind) -> str:
    model = MODELS[stub.model]
    if kind is Kind.CHECKPOINT:
        return f"train one: {model.remake}"
    if kind is Kind.ONNX and model.weights:
        return f"export one: sparseml.yolact.export_onnx --checkpoint {stub}"
    if kind is Kind.ONNX:
        export = f"sparseml.yolact.export_onnx --checkpoint {model.checkpoint}"
        return f"make one: {model.remake}, then {export}"
    if not model.recipes:
        return f"leave the recipe out, {stub.model} is trained without one: {model.remake}"
    return f"use one of this package, such as {model.recipes['original']}"
