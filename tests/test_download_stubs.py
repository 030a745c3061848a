"""Stubs: what is read, and how mistakes are answered."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.download.stubs import Stub, is_stub, parse_stub
from yolact.errors import CheckpointError, RecipeError
from zoo import BASE, PRUNED, ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE, Stub("base-none")),
        (f"{BASE}/", Stub("base-none")),
        (BASE.upper(), Stub("base-none")),
        (f" {BASE} ", Stub("base-none")),
        (BASE.replace("/", "//"), Stub("base-none")),
        (PRUNED, Stub("pruned90-none")),
        (f"zoo:/{ROOT}/Pruned82_Quant-none", Stub("pruned82_quant-none")),
        (f"{PRUNED}?recipe=original", Stub("pruned90-none", "original")),
        (f"{PRUNED}/?recipe=original", Stub("pruned90-none", "original")),
        (f"{PRUNED}?recipe=transfer_learn", Stub("pruned90-none", "transfer_learn")),
        (f"{PRUNED}?recipe=transfer-learn", Stub("pruned90-none", "transfer_learn")),
        (f"{PRUNED}?recipe=transfer", Stub("pruned90-none", "transfer_learn")),
        (f"{PRUNED}?recipe_type=original", Stub("pruned90-none", "original")),
        (f"{PRUNED}?training=preqat", Stub("pruned90-none")),
        (f"{PRUNED}?checkpoint=postqat&recipe=original", Stub("pruned90-none", "original")),
        (f"{PRUNED}?deployment=default", Stub("pruned90-none")),
    ],
)
def test_a_stub_is_read_however_it_is_spelled(text: str, expected: Stub) -> None:
    assert is_stub(text)
    assert parse_stub(text) == expected
    assert parse_stub(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            f"zoo:{ROOT}/pruned9-none",
            f"zoo:{ROOT}/pruned9-none is not a model that SparseZoo had for YOLACT",
            f"did you mean {PRUNED}?",
        ),
        (
            "zoo:cv/segmentation/yolact-darknet53/pytorch/dbolya/coco",
            f"zoo:{ROOT} is not a model that SparseZoo had for YOLACT",
            f"did you mean {BASE}?",
        ),
        (
            "zoo:base_none",
            "zoo:base_none is not a model that SparseZoo had for YOLACT",
            f"did you mean {BASE}?",
        ),
        (
            "zoo:nlp/x",
            "zoo:nlp/x is not a model that SparseZoo had for YOLACT",
            f"there were zoo:{ROOT}/ and base-none, pruned90-none, pruned82_quant-none",
        ),
        ("zoo:", "zoo: is not a model that SparseZoo had for YOLACT", f"there were zoo:{ROOT}/"),
        (f"{PRUNED}?recip=original", f"{PRUNED}?recip=original has an unknown", "try: recipe"),
        (f"{PRUNED}?x=1", "has an unknown parameter 'x'", "try: recipe, recipe_type, training"),
        (
            f"{PRUNED}?recipe=best",
            f"{PRUNED}?recipe=best asks for recipe 'best'",
            "there was: original, transfer_learn",
        ),
        (f"{PRUNED}?recipe=", "asks for recipe ''", "there was: original, transfer_learn"),
        (f"{PRUNED}?deployment=int8", "asks for deployment 'int8'", "there was: default"),
    ],
)
def test_an_unknown_stub_is_refused_with_the_nearest_name(
    text: str, message: str, hint: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_stub(text)
    assert message in str(caught.value)
    assert caught.value.hint is not None and caught.value.hint.startswith(hint)


def test_the_error_is_about_what_was_wanted() -> None:
    with pytest.raises(RecipeError, match="is not a model that SparseZoo had"):
        parse_stub("zoo:x", RecipeError)


def test_paths_are_no_stubs() -> None:
    assert not any(map(is_stub, ("weights/model.pth", "zoo/base-none", "hf:a/b", "", "/zoo:x")))


@given(st.text(string.printable, max_size=40))
def test_any_text_is_a_stub_or_an_error_with_a_hint(text: str) -> None:
    try:
        parse_stub(f"{PRUNED}{text}")
    except CheckpointError as error:
        assert error.hint
