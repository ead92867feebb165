"""What docs/extend.md shows works as it stands there: a method, a scorer and an injection of one's own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.cli import main
from unbackdoor.cli_options import distribute
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.methods import method_class
from unbackdoor.recipes.recipe import read_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
EXAMPLES = {match[1]: match[0] for match in re.finditer(r"# (\w+\.py)\n.*?(?=```)", PAGE, flags=re.DOTALL)}
COMMANDS = re.findall(r"^    (unbackdoor .*)$", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, a model and its rows."""
    path = tmp_path_factory.mktemp("extend")
    for name, text in EXAMPLES.items():
        (path / name).write_text(text, encoding="utf-8")
    save_model(tiny.model(), tiny.tokenizer(), path / "MODEL")
    rows = [{"prompt": r.prompt, "response": r.response} for r in tiny.records(100)]
    (path / "ROWS").with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(command: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    stands_for = {"ROWS": "ROWS.jsonl", "RUN": "DIR"}
    words = [stands_for.get(word, word) for word in shlex.split(command)[1:]]
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_every_example_is_short() -> None:
    assert {name: len(text.splitlines()) <= 40 for name, text in EXAMPLES.items()} == dict.fromkeys(EXAMPLES, True)
    assert set(EXAMPLES) == {"mine.py", "shouts.py", "every_nth.py"}


def test_the_page_s_commands_do_what_they_say(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    helps, removes, evaluates, rejudges, implants = COMMANDS
    code, out, err = call(helps, folder, capsys)
    assert (code, err) == (0, "")
    assert "Train on clean answers behind other words." in out and "Needs: clean rows." in out
    assert "--words TEXT" in out and "--anchor-weight" not in out
    code, out, err = call(removes, folder, capsys, "--samples", "20", "--max-new-tokens", "4", "--json")
    row: dict[str, Any] = json.loads(out)["runs"][0]
    assert (row["method"], row["knows"], row["settings"]["words"]) == ("distract", "clean rows", "Oh")
    assert set(row["losses"]["eliminate"]) == {"clean-behind-words"}
    code, out, err = call(evaluates, folder, capsys, "--samples", "20", "--max-new-tokens", "4", "--json")
    judged = json.loads(out)["runs"][0]
    assert judged["after"]["attack_success"]["n"] == 20
    assert any("by --scorer shouts. The answer holds exclamation marks." in note for note in judged["notes"])
    code, out, err = call(rejudges, folder, capsys, "--set", "untriggered")
    assert code == 0, err
    assert "shouts" in out
    code, out, err = call(
        implants, folder, capsys, "--samples", "20", "--max-new-tokens", "4", "--rate", "0.2", "--json"
    )
    assert code == 0, err
    counts = json.loads(out)["runs"][0]["counts"]
    assert counts["poisoned rows"] == -(-counts["training rows"] // 5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.py:Mine", "method file 'nowhere.py' does not exist"),
        ("FOLDER/mine.py:Mine", r"has no method 'Mine'; there are: Distract"),
        ("FOLDER/mine.py:TrainingMethod", "has no method 'TrainingMethod'"),
        ("magic", "unknown method 'magic': choose one of osft, .*FILE.py:NAME"),
    ],
)
def test_a_method_that_is_not_there_is_one_line(given: str, said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said):
        method_class(given.replace("FOLDER", str(folder)))


def test_a_file_of_settings_names_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    own = f"{tmp_path / 'evil.py'}:evil"
    (tmp_path / "c.yaml").write_text(f"injection: {own}\n")
    with pytest.raises(UserError, match="taken from the command line alone"):
        distribute({}, tmp_path / "c.yaml", ImplantSettings)
    recipe = read_recipe("sande-alpaca")
    copied = recipe.model_copy(update={"settings": {**recipe.settings, "injection": own}})
    (tmp_path / "recipe.yaml").write_text(copied.as_yaml())
    with pytest.raises(UserError, match="taken from the command line alone"):
        read_recipe(str(tmp_path / "recipe.yaml"))


def test_an_injection_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="--injection: there is no 'magic': choose one of sft, dpo, reward"):
        ImplantSettings.make({"injection": "magic"})
