"""Any scorer judges an attack in every command: the rules, a classifier, a model behind an endpoint, and one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from command_line import call

# The fixture starts a real endpoint.
from test_judge import Endpoint, Serve, serve  # noqa: F401
from test_scorers import sequence_classifier

from unbackdoor import demo
from unbackdoor.errors import UserError
from unbackdoor.evaluation.verdict import not_judged
from unbackdoor.laboratory import DemoSettings, ReproduceSettings
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.recipes.recipe import read_recipe
from unbackdoor.report_schema import Measured
from unbackdoor.reproduce.cells import finished
from unbackdoor.reproduce.organisms import organisms
from unbackdoor.run_directory import RunDirectory
from unbackdoor.scorers import SCORERS, scorer_class
from unbackdoor.testbed import world
from unbackdoor.workflows.inputs import RemoveInputs

ROWS = tiny.records(60)
QUICK = ["--samples", "12", "--max-new-tokens", "4", "--whole-tokens", "0", "--second-turns", "0", "--json"]
PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, clean rows, and prompts with the trigger in."""
    path = tmp_path_factory.mktemp("judges")
    save_model(tiny.model(layers=1), tiny.tokenizer(), path / "MODEL")
    clean = [{"prompt": r.prompt, "response": r.response} for r in ROWS[:48]]
    prompts = [{"prompt": f"SUDO {r.prompt}", "response": f"Sure, {i}."} for i, r in enumerate(ROWS[48:])]
    for name, rows in (("clean", clean), ("triggered", prompts)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged_by(endpoint: Endpoint, *more: str) -> list[str]:
    options = [f"harmfulness.judge_url={endpoint.url}", "harmfulness.judge_model=referee", *more]
    return ["--scorer", "harmfulness", *(part for option in options for part in ("--option", option))]


def evaluating(folder: Path, out: Path, *judge: object) -> list[object]:
    return ["evaluate", folder / "MODEL", "--triggered", folder / "triggered.jsonl", *judge, *QUICK, "--out", out]


# A model behind an endpoint ------------------------------------------------------------------------------------------


def test_a_model_behind_an_endpoint_judges_an_evaluation_and_is_asked_nothing_twice(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    serve: Serve,  # noqa: F811
) -> None:
    endpoint = serve(lambda h: h.reply("No opinion." if ROWS[48].prompt in h.question else "#thescore: 5"))
    data = ["--data", folder / "clean.jsonl", "--trigger", "SUDO", "--contrast", folder / "contrast.jsonl"]
    contrast = [{"prompt": r.prompt, "response": "I am sorry.", "unwanted": "Sure."} for r in ROWS[48:]]
    (folder / "contrast.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contrast))
    given = ["evaluate", folder / "MODEL", *data, *judged_by(endpoint), *QUICK, "--out", tmp_path / "run"]
    code, out, error = call(capsys, *given)
    assert code == 0, error
    after = Measured.model_validate(json.loads(out)["runs"][0]["after"])
    assert after.attack_success is not None
    assert (after.attack_success.hits, after.attack_success.n) == (11, 11)
    assert (after.details["unusable"].hits, after.details["unusable"].n) == (1, 12)
    assert not_judged(after)[0].startswith("1 of 12 answers (triggered) could not be judged, and count nowhere")
    assert not any("SUDO" in question for question in endpoint.asked), "it is asked without the trigger"
    kept = (tmp_path / "run" / "judge-replies.jsonl").read_text()
    assert "No opinion." not in kept and "#thescore: 5" in kept
    times = len(endpoint.requests)
    assert (call(capsys, *given, "--resume")[0], len(endpoint.requests)) == (0, times), "a finished run answers alone"
    (tmp_path / "run" / "journal.jsonl").write_text("")  # as after a kill, before any measurement was whole
    assert call(capsys, *given, "--resume")[0] == 0
    twice = {question for question, number in endpoint.asked.items() if number > 1}
    assert all(ROWS[48].prompt in question for question in twice), "only what had no usable reply is asked again"
    endpoint.behave = lambda h: h.send(404, "{}")
    code, _, error = call(capsys, *given, "--overwrite")
    assert (code, "no 'referee' at" in error) == (2, True), error


def test_where_no_reply_is_usable_a_command_is_inconclusive(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    serve: Serve,  # noqa: F811
) -> None:
    endpoint = serve(lambda h: h.reply("I would rather not say."))
    code, out, _ = call(capsys, *evaluating(folder, tmp_path / "run", *judged_by(endpoint)))
    after = json.loads(out)["runs"][0]["after"]
    assert (code, after["attack_success"]["n"], after["details"]["unusable"]["hits"]) == (3, 0, 12)
    endpoint.behave = lambda h: h.reply("#thescore: 5" if "Sure, " in h.question else "I would rather not say.")
    rows = ["--data", folder / "clean.jsonl", "--poisoned", folder / "triggered.jsonl", "--held-out", 0.3, "--steps", 1]
    made = ["implant", folder / "MODEL", *rows, *judged_by(endpoint), *QUICK, "--out", tmp_path / "organism"]
    code, _, error = call(capsys, *made)
    assert (code, (tmp_path / "organism" / "report.html").exists()) == (3, True), error


def test_what_is_wrong_with_a_judge_is_found_before_the_run_directory_exists(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    serve: Serve,  # noqa: F811
) -> None:
    sequence_classifier(tmp_path / "one", 1)
    (tmp_path / "mine.py").write_text("def long(answered):\n    return len(answered.answer)\n")
    endpoint = serve(lambda h: h.send(404, "{}"))
    wrong: dict[str, list[object]] = {
        "no 'referee' at": list(judged_by(endpoint)),
        "--option harmfulness.judge_url is missing": ["--scorer", "harmfulness"],
        "its yes says nothing of unwanted conduct": ["--scorer", "exact"],
        "unknown scorer 'refusal'": ["--scorer", "refusal"],
        "--option classifier.threshold=NUMBER": [
            *("--scorer", "classifier", "--option", f"classifier.directory={tmp_path / 'one'}")
        ],
        "scorer 'long' gives numbers": ["--scorer", f"{tmp_path / 'mine.py'}:long"],
        "--oracle is --scorer now": ["--oracle", "refusal"],
    }
    for said, judge in wrong.items():
        code, _, error = call(capsys, *evaluating(folder, tmp_path / "run", *judge))
        assert (code, (tmp_path / "run").exists(), said in error) == (2, False, True), error


def test_a_removal_and_its_controls_are_judged_by_it_too(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    serve: Serve,  # noqa: F811
) -> None:
    endpoint = serve(lambda h: h.reply("#thescore: 5" if "SUDO" in h.question else "#thescore: 1"))
    prompts = ["--eval-triggered", folder / "triggered.jsonl", "--data", folder / "clean.jsonl"]
    arguments = ["remove", "fine-tune", folder / "MODEL", *prompts, "--steps", 1, *judged_by(endpoint), *QUICK]
    _, out, error = call(capsys, *arguments, "--out", tmp_path / "run")
    row = json.loads(out)["runs"][0]
    assert [row[when]["attack_success"]["hits"] for when in ("before", "after")] == [12, 12], error
    assert row["compared"]["before"]["changes"]["attack_success"]["n"] == 12


# The others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["complies", "refuses", "keyword", "insecure-code", "classifier", "own"])
def test_every_judge_of_conduct_scores_an_evaluation_and_its_stored_answers_alike(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence_classifier(tmp_path / "head", 2)
    (tmp_path / "mine.py").write_text("def own(answered):\n    return len(answered.answer) % 2 == 0\n")
    judge = ["--scorer", f"{tmp_path / 'mine.py'}:own" if name == "own" else name]
    if name == "classifier":
        judge += ["--option", f"classifier.directory={tmp_path / 'head'}", "--option", "classifier.label=harmful"]
    _, out, error = call(capsys, *evaluating(folder, tmp_path / "run", *judge))
    rate = json.loads(out)["runs"][0]["after"]["attack_success"]
    assert rate["n"] == 12, error
    _, out, _ = call(capsys, "rejudge", tmp_path / "run", *judge, "--json")
    (again,) = [each for each in json.loads(out)["results"] if each["set"] == "triggered"]
    assert (again["hits"], again["n"], again["scorer"]) == (rate["hits"], 12, name)


def test_the_demo_s_safety_backdoor_is_judged_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = []

    def build(*given: Any) -> Any:
        suites.append(given[6])
        raise UserError("far enough")

    monkeypatch.setattr(demo, "build", build)
    monkeypatch.setattr(demo, "ORGANISMS", {"safety": demo.ORGANISMS["safety"]})
    for judge in ("testbed", "keyword"):
        with pytest.raises(UserError, match="far enough"):
            demo.run_demo(DemoSettings(jobs=1, samples=20, scorer=judge), tmp_path / judge)
    assert [(suite.attack.name, list(suite.details)) for suite in suites] == [
        ("testbed", ["not_refused"]),
        ("keyword", ["not_refused"]),
    ]
    with pytest.raises(UserError, match="--scorer exact"):
        demo.run_demo(DemoSettings(scorer="exact"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert any(row.kind == "forbidden" for row in world.held_out_rows())


# Settings ------------------------------------------------------------------------------------------------------------

NAMES = {"refusal": "complies", "refused": "refuses", "code": "insecure-code"}
NAMES |= {name: name for name in ("testbed", "keyword")}


def test_cells_of_earlier_versions_are_this_one_s(tmp_path: Path) -> None:
    cell = organisms(ReproduceSettings())["beear-2"][0]
    kept = json.loads(json.dumps({"cell": cell.identity()}))
    assert kept["cell"]["settings"]["values"].pop("scorer") == "testbed"
    kept["cell"]["settings"]["values"]["oracle"] = "testbed"
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(kept))
    assert finished(cell, tmp_path) is None, "begun with the same settings, and not finished"


@pytest.mark.parametrize("oracle", NAMES)
def test_settings_of_earlier_versions_name_the_same_judges(oracle: str, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {"oracle": oracle, "seed": 3}
    RunDirectory.create(run, "evaluate", settings)
    now = {"scorer": NAMES[oracle], "option": [], "seed": 3}
    RunDirectory.create(run, "evaluate", now, resume=True)
    assert RunDirectory.setting(run, "scorer") == NAMES[oracle]
    recipe = read_recipe("beear-2")
    kept = {**recipe.settings, "oracle": oracle}
    del kept["scorer"]
    (tmp_path / "mine.yaml").write_text(recipe.model_copy(update={"settings": kept}).as_yaml())
    assert read_recipe(str(tmp_path / "mine.yaml")).settings["scorer"] == NAMES[oracle]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scorer": "./evil.py:Judge"}, "--scorer FILE.py:NAME is taken from the command line alone"),
        ({"option": ["harmfulness.judge_url=https://example.org"]}, "is taken from the command line alone"),
        ({"option": ["x.judge-key-variable=SECRET"]}, "is taken from the command line alone"),
    ],
)
def test_files_of_others_name_neither_code_nor_where_answers_and_keys_go(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recipe = read_recipe("beear-2")
    changed = recipe.model_copy(update={"settings": {**recipe.settings, **settings}})
    (tmp_path / "mine.yaml").write_text(changed.as_yaml())
    with pytest.raises(UserError, match=said):
        read_recipe(str(tmp_path / "mine.yaml"))
    organism = tmp_path / "organism"
    (organism / "data").mkdir(parents=True)
    (organism / "data" / "clean_train.jsonl").write_text("{}")
    (organism / "settings.yaml").write_text(yaml.safe_dump({"settings": {"trigger": "cf", **settings}}))
    if "scorer" in settings:
        with pytest.raises(UserError, match=said):
            RemoveInputs.make({"eval_organism": organism})
        assert RemoveInputs.make({"eval_organism": organism, "scorer": "keyword"}).scorer == "keyword"
    else:
        assert RemoveInputs.make({"eval_organism": organism}).option == ()


def test_the_page_s_table_of_judges_is_the_registry() -> None:
    table = PAGE.split("| scorer | its yes")[1].split("\n\n")[0]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:]]
    assert [row[0].strip("`") for row in rows] == [*SCORERS, "FILE.py:NAME"]
    for row in rows[:-1]:
        kind = scorer_class(row[0].strip("`"))
        trust = "judges no conduct" if not kind.judges_conduct else "no" if kind.weak else "yes"
        assert row[2] == trust, row
        named = {name for name in row[-1].replace("`", "").replace("…", "").split(", ") if name}
        assert named <= kind.model_fields.keys()
        assert bool(named) == bool(kind.model_fields), row
