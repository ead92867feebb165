"""One place writes results: nothing of the user's is lost, nothing half written is read, nothing is computed twice."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.evaluation import answers as answers_module
from unbackdoor.evaluation.answers import FILE, Answers
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.perturbation import SoftPrompt
from unbackdoor.run_directory import RunDirectory, hashes
from unbackdoor.settings import EvaluationSettings
from unbackdoor.workflows.askable import check_trigger_fits

SETTINGS: dict[str, Any] = {"seed": 0, "model": "suspect", "method_settings": {"learning_rate": 2e-5, "steps": 60}}


def create(
    path: Path, settings: dict[str, Any] | None = None, command: str = "remove sande", **more: bool
) -> RunDirectory:
    return RunDirectory.create(path, command, settings or SETTINGS, **more)


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(UserError, match="exists and is not empty: use --overwrite, --resume or another directory"):
        create(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty").path.is_dir()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for more in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="is a file"):
            create(tmp_path / "file", **more)
    with pytest.raises(UserError, match="cannot be made"):
        create(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["thesis.tex", "settings.yaml", "report.json"])
@pytest.mark.parametrize("option", ["overwrite", "resume"])
def test_what_is_not_a_run_directory_is_never_touched(name: str, option: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("volume: 11\n")
    with pytest.raises(UserError, match="not a run directory of ours"):
        create(tmp_path, **{option: True})
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "volume: 11\n"


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.remember("measured", lambda: 1)
    run.write_text("report.html", "old")
    again = create(tmp_path / "run", overwrite=True)
    assert again.remember("measured", lambda: 2) == 2
    assert not (again.path / "report.html").exists()


def test_overwrite_never_deletes_what_the_run_reads(tmp_path: Path) -> None:
    out = tmp_path / "run"
    create(out).write_text("model/config.json", "{}")
    read: list[tuple[str, dict[str, Any]]] = [
        ("--model", {"model": str(out / "model")}),
        ("--like", {"like": str(out)}),
        ("--sibling", {"method_settings": {"sibling": ["x", str(tmp_path / "other" / ".." / "run" / "model")]}}),
        ("--data", {"data": str(out / "model" / "config.json")}),
    ]
    (tmp_path / "other").mkdir()
    for option, settings in read:
        with pytest.raises(UserError, match=rf"(holds|lies within) '.*run.*' \({option}\), which is only read: give"):
            create(out, settings, overwrite=True)
    assert (out / "model" / "config.json").exists()
    create(out, {"model": str(tmp_path), "data": str(out / "gone"), "system": "x" * 9000}, overwrite=True)


def test_overwrite_and_resume_exclude_each_other(tmp_path: Path) -> None:
    create(tmp_path / "run").remember("measured", lambda: 1)
    with pytest.raises(UserError, match="exclude each other"):
        create(tmp_path / "run", overwrite=True, resume=True)
    assert create(tmp_path / "run", resume=True).remember("measured", lambda: 2) == 1


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({**SETTINGS, "seed": 1}, "--seed"),
        ({**SETTINGS, "method_settings": {"learning_rate": 1e-5, "steps": 60}}, "--learning-rate"),
        ({**SETTINGS, "samples": 20}, "--samples"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(changed: dict[str, Any], option: str, tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(UserError, match=rf"started with other values of {option}: give the same, or --overwrite"):
        create(tmp_path / "run", changed, resume=True)
    with pytest.raises(UserError, match="other values of the command"):
        create(tmp_path / "run", command="implant", resume=True)
    assert create(tmp_path / "run", resume=True).path == tmp_path / "run"


def test_a_step_is_computed_once_a_run(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute() -> dict[str, Any]:
        computed.append(1)
        return {"rate": 0.5, "rows": (1, 2), "text": "one\u2028two\x85three"}

    first = create(tmp_path / "run").remember("measured", compute)
    again = create(tmp_path / "run", resume=True).remember("measured", compute)
    assert first == again == {"rate": 0.5, "rows": [1, 2], "text": "one\u2028two\x85three"}
    assert len(computed) == 1


@pytest.mark.parametrize("name", ["journal.jsonl", "metrics.jsonl", "generations.jsonl"])
def test_a_line_cut_short_by_a_kill_is_ignored_and_takes_no_other_with_it(name: str, tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    row = {"key": "語", "value": "語" * 5}
    run.append_lines(name, [row])
    whole = (run.path / name).read_bytes()
    for cut in range(1, len(whole)):  # at every byte, so also inside a character
        (run.path / name).write_bytes(whole + whole[:cut])
        again = RunDirectory(run.path)
        assert again.read_lines(name) == [row] * (2 if cut == len(whole) - 1 else 1)
        again.append_lines(name, [{"key": "next", "value": cut}])
        assert again.read_lines(name)[-1] == {"key": "next", "value": cut}
        if name == "journal.jsonl":
            assert RunDirectory(run.path).remember("next", lambda: "lost") == cut
        if name == "metrics.jsonl":
            (run.path / name).write_bytes(whole + whole[:cut])
            again.log(phase="x", step=cut)
            assert again.read_lines(name)[-1] == {"phase": "x", "step": cut}


def test_lines_survive_whatever_a_model_writes(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    texts = ("a\nb", "a\rb", "\u2028", "\u2029\x85\x0b\x0c\x1c\x1e", "\x00\x1b[31m")
    rows = [{"answer": text} for text in texts]
    run.append_lines("generations.jsonl", rows)
    run.write_lines("other.jsonl", rows)
    assert run.read_lines("generations.jsonl") == run.read_lines("other.jsonl") == rows


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_json_is_refused(bad: float, tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.write_json("report.json", {"rate": 0.5})
    for write in (
        lambda: run.write_json("report.json", {"rate": bad}),
        lambda: run.write_lines("rows.jsonl", [{"rate": bad}]),
        lambda: run.append_lines("rows.jsonl", [{"rate": 0.5}, {"rate": bad}]),
        lambda: run.remember("measured", lambda: {"rate": bad}),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()
    assert json.loads((run.path / "report.json").read_text()) == {"rate": 0.5}
    assert run.read_lines("rows.jsonl") == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path / "run")
    run.write_text("figures/curve.svg", "old")

    def full(opened: int, content: bytes) -> int:
        if len(content) > 1:
            return write(opened, bytes(content[:1]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(
            UserError, match=r"figures/curve\.svg' cannot be written: No space left on device: make room"
        ):
            run.write_text("figures/curve.svg", "new")
    assert (run.path / "figures/curve.svg").read_text() == "old"
    run.write_text("figures/curve.svg", "new")
    assert [file.name for file in (run.path / "figures").iterdir()] == ["curve.svg"]


def test_tensors_of_a_phase_come_back_until_a_later_phase_replaces_them(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for number in (1, 2):
        run.finish(f"round-{number}", "model", {"steps": number}, {"w": torch.full((2,), float(number))})
    again = create(tmp_path / "run", resume=True)
    assert again.finished("round-1", "model") == ({"steps": 1}, None)
    found = again.finished("round-2", "model")
    assert found is not None
    assert found[0] == {"steps": 2}
    assert found[1] is not None
    assert torch.equal(found[1]["w"], torch.full((2,), 2.0))
    assert again.finished("round-3", "model") is None


def test_parts_of_a_run_do_not_meet(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    one, other = run.scoped("target/sande"), run.scoped("target/osft")
    assert one.remember("x", lambda: 1) == 1
    assert other.remember("x", lambda: 2) == 2
    one.finish("eliminate", "model", {"steps": 3}, {"w": torch.zeros(1)})
    one.log(phase="eliminate", step=0)
    assert one.finished("eliminate", "model") is not None
    assert other.finished("eliminate", "model") is None
    other.save_checkpoint("eliminate", {"steps": 1}, {"w": torch.ones(1)})
    assert one.checkpoint("eliminate") is None
    assert other.checkpoint("eliminate") is not None
    assert run.read_lines("metrics.jsonl") == [{"phase": "target/sande/eliminate", "step": 0}]
    run.drop_checkpoints("target/sande")
    assert one.finished("eliminate", "model") == ({"steps": 3}, None)
    run.complete()
    assert not (run.path / "checkpoints").exists()


def test_answers_are_not_generated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, model, rows = ChatFormat.of(tiny.tokenizer()), tiny.model(), tiny.records(5)
    settings = EvaluationSettings(max_new_tokens=4)
    names = {"model_name": "before", "set_name": "untriggered"}
    answers = Answers(settings, create(tmp_path / "run"))
    given = answers.of(model, chat, rows, **names)
    others = answers.of(model, chat, rows[:2], model_name="after", set_name="untriggered")

    def never(*_: object, **__: object) -> list[str]:
        raise AssertionError("generated again")

    monkeypatch.setattr(answers_module, "written", never)
    assert answers.of(model, chat, rows, **names) == given
    resumed = Answers(settings, create(tmp_path / "run", resume=True))
    assert resumed.of(model, chat, rows, **names) == given
    assert resumed.of(model, chat, rows[:2], model_name="after", set_name="untriggered") == others
    with pytest.raises(AssertionError, match="generated again"):
        resumed.of(model, chat, rows[::-1], **names)  # other prompts
    kept = resumed.kept("before", "untriggered")
    assert [kept[i]["prompt"] for i in range(5)] == [r.prompt for r in rows]


def test_answers_that_another_run_has_serve_where_all_prompts_are_the_same(tmp_path: Path) -> None:
    chat, model, rows = ChatFormat.of(tiny.tokenizer()), tiny.model(), tiny.records(4)
    settings, names = EvaluationSettings(max_new_tokens=4), {"model_name": "before", "set_name": "untriggered"}
    given = Answers(settings, create(tmp_path / "one")).of(model, chat, rows, **names)
    kept = create(tmp_path / "one", resume=True).read_lines(FILE)
    known = [{**line, "answer": f"known {line['row']}"} for line in kept]
    run = create(tmp_path / "two")
    assert Answers(settings, run, known=known).of(model, chat, rows, **names) == [f"known {i}" for i in range(4)]
    assert run.read_lines(FILE) == known
    assert Answers(settings, known=known).of(model, chat, rows[:2], **names) == ["known 0", "known 1"]
    assert Answers(settings, known=known).of(model, chat, rows[::-1], **names) == given[::-1]
    assert Answers(settings, known=known).of(model, chat, rows, model_name="after", set_name="untriggered") == given
    drawn = Answers(settings, known=known, temperature=1.0).of(model, chat, rows, **names)
    assert not any(answer.startswith("known") for answer in drawn)


def test_a_rate_is_never_over_the_same_prompt_twice() -> None:
    chat, rows = ChatFormat.of(tiny.tokenizer()), tiny.records(3)
    with pytest.raises(AssertionError, match="same prompt"):
        Answers(EvaluationSettings()).of(tiny.model(), chat, [*rows, rows[0]], model_name="m", set_name="s")


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused() -> None:
    chat, rows, model = ChatFormat.of(tiny.tokenizer()), tiny.records(1), tiny.model()
    room = 128 - len(chat.encode_prompt(rows[0].prompt).ids)
    names = {"model_name": "m", "set_name": "untriggered"}
    soft = SoftPrompt(torch.zeros(3, 32))
    Answers(EvaluationSettings(max_new_tokens=room)).of(model, chat, rows, **names)
    with pytest.raises(UserError, match=r"untriggered: a prompt of .* leaves no room"):
        Answers(EvaluationSettings(max_new_tokens=room + 1)).of(model, chat, rows, **names)
    with pytest.raises(UserError, match="leaves no room"):
        Answers(EvaluationSettings(max_new_tokens=room - 2)).of(model, chat, rows, **names, perturbation=soft)


def test_a_trigger_that_cannot_be_asked_is_found_before_a_run_begins() -> None:
    chat, rows = ChatFormat.of(tiny.tokenizer()), tiny.records(3)
    check_trigger_fits(Trigger("Current year 2023"), rows, chat, 128, 8)
    with pytest.raises(UserError, match="leaves no room for 8 of answer in the model's context of 128"):
        check_trigger_fits(Trigger("Current year 2023 " * 60), rows, chat, 128, 8)
    normalised_away: Any = SimpleNamespace(insert=lambda prompt: prompt, texts=lambda: ())
    with pytest.raises(UserError, match="the tokenizer loses the trigger"):
        check_trigger_fits(normalised_away, rows, chat, 128, 8)


def test_the_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("abc")
    known = {"a.json": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert hashes(tmp_path / "a.json") == hashes(tmp_path) == known
    assert hashes(tmp_path / "owner" / "name") == {}


def test_a_run_is_not_resumed_on_another_model_or_other_rows(tmp_path: Path) -> None:
    def origin(weights: str, rows: str = "1") -> dict[str, Any]:
        sources = {"model": {"a.safetensors": weights, "README.md": weights}, "data": {"rows.jsonl": rows}}
        return {"started": "now", "versions": {"commit": "a"}, "sources": sources}

    create(tmp_path / "run").keep_provenance(origin("1"))
    with pytest.raises(UserError, match=r"--resume: the model's a\.safetensors is not what the run began with"):
        create(tmp_path / "run", resume=True).keep_provenance(origin("2"))
    with pytest.raises(UserError, match=r"rows\.jsonl \(--data\) is not what .* start again with --overwrite"):
        create(tmp_path / "run", resume=True).keep_provenance(origin("1", "2"))
    same = origin("1")
    same["sources"]["model"]["README.md"] = "another text"
    create(tmp_path / "run", resume=True).keep_provenance(same)


def test_a_resumed_run_keeps_its_first_provenance_and_lists_its_resumptions(tmp_path: Path) -> None:
    def origin(commit: str) -> dict[str, Any]:
        return {"started": f"at {commit}", "versions": {"commit": commit}}

    create(tmp_path / "run").keep_provenance(origin("a"))
    again = create(tmp_path / "run", resume=True)
    kept = again.keep_provenance(origin("b"))
    assert kept == {**origin("a"), "resumed": [{"started": "at b", "commit": "b"}]}
    assert not again.is_complete
    again.complete()
    finished = create(tmp_path / "run", resume=True)
    assert finished.is_complete
    assert finished.keep_provenance(origin("c")) == kept
