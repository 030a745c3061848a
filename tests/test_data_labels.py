"""Names of classes are matched where there is no doubt which one is meant."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.data.labels import Classes, few_names, match_names, unknown_names


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
        (["Nut", "bolt "], ["nut", "bolt"], {"Nut": "nut", "bolt ": "bolt"}),
        (["traffic_light"], ["Traffic  light"], {"traffic_light": "Traffic  light"}),
        (
            [unicodedata.normalize("NFD", "Größe")],
            ["GRÖSSE"],
            {unicodedata.normalize("NFD", "Größe"): "GRÖSSE"},
        ),
        (["\ufeffnut"], ["nut"], {"\ufeffnut": "nut"}),
        (["NUT"], ["nut", "Nut"], {}),
        (["nut", "NUT"], ["nut"], {"nut": "nut"}),
        (["Nut", "NUT"], ["nut"], {}),
        (["nuts"], ["nut"], {}),
    ],
)
def test_a_name_means_the_only_one_like_it(
    names: list[str], known: list[str], expected: dict[str, str]
) -> None:
    assert match_names(names, known) == expected


NAMES = st.lists(st.text("aA _ß", max_size=3), max_size=6)


@given(NAMES, NAMES)
def test_no_name_is_meant_twice(names: list[str], known: list[str]) -> None:
    matched = match_names(names, known)
    assert len(set(matched.values())) == len(matched)
    assert all(matched[name] == name for name in set(names) & set(known))


def test_only_categories_with_objects_have_to_be_known() -> None:
    data = Classes(("cat", "dog", "owl"), (1, 2, 5))
    assert unknown_names(["CAT"], data) == ["dog", "owl"]
    assert unknown_names(["CAT"], data, {1: 3, 5: 2}) == ["owl"]
    assert unknown_names(["CAT"], data, {}) == ["dog", "owl"]


def test_names_are_shown_with_quotes_and_the_nearest() -> None:
    assert few_names(["a ", "b"]) == "'a ', 'b'"
    assert few_names(["bold", "x"], ["bolt", "nut"]) == "'bold' (nearest: 'bolt'), 'x'"
    assert few_names(list("abcdefg"), most=3) == "'a', 'b', 'c', ..."
