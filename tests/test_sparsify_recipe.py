"""Recipes: every way to give one, every way to get one wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from yolact.errors import RecipeError
from yolact.sparsify.check.examine import PlannedRun, require_sound
from yolact.sparsify.document import Entry, dump, entries, parse
from yolact.sparsify.recipe import load_recipe, packaged_recipes
from yolact.sparsify.stages import compose, last_epoch, last_stage_begins
from yolact.sparsify.variables import parse_recipe_args

pytestmark = pytest.mark.usefixtures("recipe_engine")

RECIPE = """\
num_epochs: 4
mask_type: [1, 4]
lr: 1e-3
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0
    end_epoch: eval(num_epochs)
    lr_func: linear
    init_lr: eval(lr)
    final_lr: eval(lr / 10)
pruning_modifiers:
  - !GMPruningModifier
    params: [body.weight]
    start_epoch: 0
    end_epoch: eval(num_epochs * 0.5)
    init_sparsity: 0.1
    final_sparsity: 0.8
    update_frequency: 0.1
    mask_type: eval(mask_type)
"""


class Model(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 2, 1)


def fields(text: str, name: str) -> dict[str, Any]:
    return next(e.fields for e in entries(parse(text, "test")) if e.name == name)


def failure(source: str, **recipe_args: Any) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, recipe_args)
    assert caught.value.hint
    return str(caught.value), caught.value.hint


def test_one_recipe_in_every_guise(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE)
    (tmp_path / "a.md").write_text(f"---\n{RECIPE}---\n\n# A card\n\n---\n")
    guises = [RECIPE, f"---\n{RECIPE}---\n", str(tmp_path / "a.yaml"), str(tmp_path / "a.md")]
    assert len({load_recipe(guise).text for guise in guises}) == 1
    assert load_recipe(guises[3]).label == guises[3]


INDENTED = "".join(f"    {line}" for line in RECIPE.splitlines(keepends=True))

PUBLISHED = {
    "after a licence": f"<!--\nCopyright\n-->\n\n---\n{RECIPE}---\n\n# A card\n",
    "after a rule and a table": f"A title\n-----\n\n|a|b|\n|-|-|\n\n---\n{RECIPE}---\n\n---\n",
    "after other metadata": f"---\nlicense: apache-2.0\ntags: [int8]\n---\n\n---\n{RECIPE}---\n",
    "with spaces": f"  ---  \n{RECIPE}--- \t\n# A card\n",
    "with longer rules": f"-----\n{RECIPE}-----\n",
    "with plus signs": f"+++\n{RECIPE}+++\n",
    "indented": f"Save this:\n\n    ---\n{INDENTED}    ---\n\n    and train\n",
    "in a fence": f"```yaml\n---\n{RECIPE}---\n```\n",
    "with rules in comments": f"---\n# --- epochs ---\n{RECIPE}# +++\n---\n",
    "ended within a line": f"---\n{RECIPE}--- the end of it\n",
    "in a marked document": f"--- # of YAML\n{RECIPE}---\n",
}
"""Forms that recipes were published in, which sparseml reads all but the second and the third."""


@pytest.mark.parametrize("text", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_front_matter_is_found_wherever_it_stands(tmp_path: Path, text: str, ends: str) -> None:
    (tmp_path / "card.md").write_bytes(text.replace("\n", ends).encode())
    assert load_recipe(str(tmp_path / "card.md")).text == load_recipe(RECIPE).text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-bom"])
@pytest.mark.parametrize("name", ["card.md", "recipe.yaml", "recipe.YML"])
def test_the_encodings_that_editors_write(tmp_path: Path, name: str, encoding: str) -> None:
    text = f"# Größe\n{RECIPE}" if "card" not in name else f"---\n# Größe\n{RECIPE}---\n"
    if encoding == "utf-16-be-bom":
        content = b"\xfe\xff" + text.encode("utf-16-be")
    else:
        content = text.encode(encoding)
    (tmp_path / name).write_bytes(content)
    assert load_recipe(str(tmp_path / name)).text == load_recipe(RECIPE).text


def test_another_encoding_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cp.yaml").write_bytes(f"# Größe\n{RECIPE}".encode("cp1252"))
    message, hint = failure(str(tmp_path / "cp.yaml"))
    assert message.startswith(f"{tmp_path}/cp.yaml cannot be read: 'utf-8' codec can't decode")
    assert hint == "save it as UTF-8"


def test_the_line_of_an_error_is_that_of_the_file(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("<!-- a\nlicence -->\n---\n\nmodifiers:\n  - !EpochRangeModifier\n\t\n---\n")
    assert failure(str(card))[0].startswith(f"{card} is not valid YAML at line 7, column 1")


def test_a_modifier_alone_under_a_key_is_a_list_of_one() -> None:
    alone = RECIPE.replace("pruning_modifiers:\n  - !GMP", "pruning: !pytorch.GMP")
    assert list(entries(parse(alone, ""))) == list(entries(parse(RECIPE, "")))
    assert load_recipe(alone).entries == load_recipe(RECIPE).entries


def test_a_key_given_twice_is_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    load_recipe(RECIPE + "pruning_modifiers:\n  - !ConstantPruningModifier {params: [a]}\n")
    assert [record.getMessage() for record in caplog.records] == [
        "the recipe: 1 of 21 keys are given twice, the last value counts "
        "(first: 'pruning_modifiers' again at line 23)"
    ]


def test_modifiers_beside_stages_are_not_left_out() -> None:
    staged = "first:\n  a_modifiers:\n    - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"
    assert failure(RECIPE + staged) == (
        "the recipe has stages (first) and modifiers outside of them "
        "(training_modifiers, pruning_modifiers)",
        "move these lists into a stage, or take all lists out of the stages",
    )


def test_variables_are_resolved_and_gone() -> None:
    text = load_recipe(RECIPE).text
    assert "eval" not in text and "num_epochs" not in text
    assert fields(text, "GMPruningModifier")["end_epoch"] == 2
    assert fields(text, "GMPruningModifier")["mask_type"] == [1, 4]
    assert fields(text, "LearningRateFunctionModifier")["init_lr"] == 0.001


def test_recipe_args_reach_everything_that_depends_on_them() -> None:
    text = load_recipe(RECIPE, {"num_epochs": 1.5, "mask_type": "unstructured"}).text
    assert fields(text, "EpochRangeModifier")["end_epoch"] == 1.5
    assert fields(text, "GMPruningModifier")["end_epoch"] == 0.75
    assert fields(text, "GMPruningModifier")["mask_type"] == "unstructured"


def test_a_stage_has_its_own_variables() -> None:
    stage = "  epochs: eval(base * 2)\n  first_modifiers:\n    - !EpochRangeModifier\n"
    text = f"base: 3\nfirst:\n{stage}      start_epoch: 0\n      end_epoch: eval(epochs)\n"
    assert fields(load_recipe(text).text, "EpochRangeModifier")["end_epoch"] == 6
    assert fields(load_recipe(text, {"base": 5}).text, "EpochRangeModifier")["end_epoch"] == 10


def test_packaged_recipes_have_short_names() -> None:
    assert "yolact.pruned" in packaged_recipes()
    assert load_recipe("yolact.pruned").label == "yolact.pruned"
    assert load_recipe("yolact.pruned.md").text == load_recipe("yolact.pruned").text


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        (
            "!GMPruningModifier",
            "!GMPrunningModifier",
            "unknown modifier !GMPrunningModifier",
            "did you mean !GMPruningModifier?",
        ),
        (
            "init_sparsity",
            "initial_sparsity",
            "GMPruningModifier has no field 'initial_sparsity'",
            "try: init_sparsity",
        ),
        (
            "eval(num_epochs)",
            "eval(num_epoch)",
            "eval(num_epoch) uses 'num_epoch', which is not defined",
            "try: num_epochs",
        ),
        (
            "num_epochs: 4",
            "num_epochs: eval(num_epochs + 1)",
            "the variables num_epochs depend on each other",
            "give one of them a number",
        ),
        (
            "eval(lr / 10)",
            "eval(lr / 0)",
            "cannot compute eval(lr / 0): float division by zero",
            "numbers, variables, + - * / // % **, abs min max round int float are understood",
        ),
        (
            "    final_sparsity: 0.8\n",
            "",
            "GMPruningModifier needs final_sparsity",
            "check its fields; it has start_epoch 0, end_epoch 2.0, "
            "which may follow from the recipe's variables",
        ),
        (
            "eval(num_epochs * 0.5)",
            "0",
            "GMPruningModifier ends at epoch 0, but starts at 0",
            "check its fields; it has start_epoch 0, end_epoch 0, "
            "which may follow from the recipe's variables",
        ),
        (
            "- !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: eval(num_epochs)",
            "- EpochRangeModifier",
            "'EpochRangeModifier' in a list of modifiers is not one",
            "entries begin with !, like - !GMPruningModifier",
        ),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str, hint: str) -> None:
    assert failure(RECIPE.replace(old, new)) == (f"the recipe: {message}", hint)


def test_unknown_keys_of_a_quantization_scheme_are_not_ignored() -> None:
    text = "- !QuantizationModifier\n  start_epoch: 0\n  scheme: {weights: {bits: 8}}\n"
    message, hint = failure(text)
    assert message == "the recipe: QuantizationModifier: scheme: weights has no field 'bits'"
    assert hint == "try: num_bits"


def test_an_unknown_variable_names_the_nearest() -> None:
    assert failure(RECIPE, num_epoch=2) == (
        "the recipe has no variable 'num_epoch'",
        "try: num_epochs",
    )
    assert failure(load_recipe(RECIPE).text, num_epochs=2) == (
        "the recipe has no variable 'num_epochs'",
        "the recipe defines no variables",
    )


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    card, empty, checkpoint = (tmp_path / name for name in ("a.md", "b.yaml", "c.pth"))
    card.write_text("# Only a card\n")
    empty.write_text(" \n")
    checkpoint.write_bytes(b"\x80")
    assert failure(str(card)) == (
        f"{card} has no YAML front matter",
        "put the recipe between two lines of ---; a file of YAML alone ends in .yaml",
    )
    assert failure(str(empty)) == (
        f"{empty} is empty",
        "a recipe is a list of modifiers in YAML",
    )
    assert failure(str(checkpoint)) == (
        f"{checkpoint} is neither a .md nor a .yaml file",
        "rename it, or pass the checkpoint with --resume or --ckpt",
    )
    assert failure(str(tmp_path / "yolact.prunned.md")) == (
        f"recipe not found: {tmp_path}/yolact.prunned.md",
        "did you mean yolact.pruned, which comes with this package?",
    )


def test_malformed_yaml_says_where() -> None:
    message, _ = failure("modifiers:\n  - !EpochRangeModifier\n    start_epoch: [0\n")
    assert message.startswith("the recipe is not valid YAML at line 4, column 1: expected ','")


def test_characters_that_are_no_text_are_an_error_too() -> None:
    assert failure("modifiers:\n  - \0\n")[0].startswith("the recipe is not valid YAML: ")


def test_no_modifiers() -> None:
    assert failure("num_epochs: 3\nother: 2\n")[0] == "the recipe contains no modifiers"
    assert failure("just\ntext\n")[0] == "the recipe is not a recipe"


def test_names_that_match_nothing_are_named_with_the_nearest() -> None:
    require_sound(load_recipe(RECIPE), Model(), PlannedRun())
    recipe = load_recipe(RECIPE.replace("body.weight", "bodi.weight, re:x.*"))
    with pytest.raises(RecipeError) as caught:
        require_sound(recipe, Model(), PlannedRun())
    assert str(caught.value) == (
        "the recipe has 2 problems: "
        "GMPruningModifier: no parameter of the model matches 'bodi.weight'; "
        "GMPruningModifier: no parameter of the model matches 're:x.*'"
    )
    assert caught.value.hint == (
        "did you mean 'body.weight'?; use the recipe made for this --config"
    )


def test_blocks_that_do_not_divide_a_weight_are_named() -> None:
    with pytest.raises(RecipeError) as caught:
        require_sound(load_recipe(RECIPE), Model(channels=3), PlannedRun())
    assert str(caught.value) == (
        "the recipe: GMPruningModifier: blocks of [1, 4] do not divide body.weight [2, 3, 1, 1]"
    )
    assert caught.value.hint == ("leave that parameter out, or use mask_type: unstructured for it")


def test_a_broken_regular_expression_is_a_recipe_error() -> None:
    recipe = load_recipe(RECIPE.replace("body.weight", "'re:(body'"))
    with pytest.raises(RecipeError, match=r"'\(body' is not a regular expression"):
        require_sound(recipe, Model(), PlannedRun())


def test_composed_recipes_follow_each_other() -> None:
    first, second = load_recipe(RECIPE), load_recipe(RECIPE, {"num_epochs": 2})
    once = compose(first, second)
    twice = compose(once, second)
    assert compose(None, first) == first
    assert list(twice.stages) == ["stage_0", "stage_1", "stage_2"]
    assert last_stage_begins(once) == 4
    assert last_stage_begins(twice) == 6
    assert last_epoch(twice) == 8
    assert load_recipe(twice.text) == twice


def test_composing_keeps_regular_expressions_as_they_are() -> None:
    pattern = r"re:body\.(?!bias)\w+"
    recipe = load_recipe(RECIPE.replace("body.weight", f"'{pattern}'"))
    composed = load_recipe(compose(recipe, recipe).text)
    assert [e.fields["params"] for e in composed.entries if "params" in e.fields] == [
        [pattern],
        [pattern],
    ]


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(["unstructured", "block4", "linear"]),
)


@given(st.dictionaries(NAMES.filter(lambda n: n not in ("y", "n")), VALUES, max_size=4))
def test_recipe_args_mean_the_same_as_pairs_and_as_a_mapping(values: dict[str, Any]) -> None:
    pairs = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    assert parse_recipe_args(pairs) == values
    assert parse_recipe_args([",".join(pairs)]) == values
    assert parse_recipe_args([json.dumps(values)]) == values
    assert parse_recipe_args([str(values).replace("True", "true").replace("False", "false")]) == (
        values
    )


def test_recipe_args_of_the_command_line() -> None:
    texts = ["num_epochs=2,mask_type=[1, 4]", "lr=1e-3", "a: 1", "{b: x}", "lr=2e-3"]
    assert parse_recipe_args(texts) == {
        "num_epochs": 2,
        "mask_type": [1, 4],
        "lr": 0.002,
        "a": 1,
        "b": "x",
    }


@pytest.mark.parametrize("text", ["num_epochs", "=2", "2=num_epochs", "{1: 2}", "a=[1", "{a"])
def test_recipe_args_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="recipe argument") as caught:
        parse_recipe_args([text])
    assert caught.value.hint == "write num_epochs=2 init_lr=1e-3, or {num_epochs: 2, init_lr: 1e-3}"


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.one_of(VALUES, st.text(max_size=12)), max_size=5))
@example({"text": "0E0", "number": 1e-7})
def test_documents_survive_writing_and_reading(values: dict[str, Any]) -> None:
    document = {"some_modifiers": [Entry("SomeModifier", values), Entry("Bare")], "variable": 1}
    assert parse(dump(document), "test") == document


@settings(deadline=None, max_examples=30)
@given(
    epochs=st.floats(0.25, 200),
    final=st.floats(0.2, 0.99),
    frequency=st.floats(0.01, 2),
    pattern=st.sampled_from(["body.weight", r"re:.*\.weight", "re:(?!head).*", "__ALL__"]),
)
def test_a_loaded_recipe_loads_as_itself(
    epochs: float, final: float, frequency: float, pattern: str
) -> None:
    entry = Entry(
        "GMPruningModifier",
        {
            "params": [pattern],
            "start_epoch": 0.0,
            "end_epoch": epochs,
            "init_sparsity": 0.1,
            "final_sparsity": final,
            "update_frequency": frequency,
        },
    )
    recipe = load_recipe(dump({"pruning_modifiers": [entry]}))
    again = load_recipe(recipe.text)
    assert (again, again.text) == (recipe, recipe.text)
    assert recipe.entries == (entry,)
