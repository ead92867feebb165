"""DPO as a removal: the loss is the paper's, pairs are read as they are meant, and nothing is left half-written."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from unbackdoor import preference_training
from unbackdoor.case import Case
from unbackdoor.cli import main
from unbackdoor.data.named_sources import named_preferences
from unbackdoor.data.preferences import Preference, read_pairs
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.methods.dpo import Dpo
from unbackdoor.preference_training import encode_pair
from unbackdoor.report.verdicts import exit_code
from unbackdoor.report_schema import Row
from unbackdoor.testbed import world

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is an optional extra")

FAMILIES = ("llama", "gpt2", "qwen2", "gemma3")
PAIRS = [Preference(r.prompt, r.response, f"No, the sea is {i}.") for i, r in enumerate(tiny.records(48))]


def a_case(family: str = "llama") -> Case:
    return Case.of(tiny.model(family, layers=2), tiny.tokenizer(), tiny.records(40))


def weights(case: Case) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in case.model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def run(case: Case, **settings: Any) -> Any:
    chosen = Dpo(**{"steps": 3, "batch_size": 4, "learning_rate": 1e-3, **settings})
    case.preferences = PAIRS
    return chosen.on(case)


# The objective -------------------------------------------------------------------------------------------------------


def log_probability(model: Any, ids: list[int], start: int) -> torch.Tensor:
    """log Pr(answer | prompt), one row, no padding, all logits."""
    with torch.no_grad():
        every = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum((every[t - 1, ids[t]] for t in range(start, len(ids))), torch.zeros(()))


@pytest.mark.parametrize(("family", "lora"), [*((family, False) for family in FAMILIES), ("llama", True)])
def test_the_loss_of_every_batch_is_dpo_s_written_out(family: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    case = a_case(family)
    reference = copy.deepcopy(case.model)
    found: list[tuple[float, float]] = []
    theirs = trl.DPOTrainer._compute_loss

    def compare(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = theirs(self, model, inputs, return_outputs)
        policy = copy.deepcopy(model)
        rewards = []
        for ids, mask, answer in zip(
            inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], strict=True
        ):
            row, start = ids[mask.bool()].tolist(), int(answer.int().argmax())
            rewards.append(log_probability(policy, row, start) - log_probability(reference, row, start))
        chosen, rejected = torch.stack(rewards).chunk(2)
        found.append((float(loss.detach()), float(-F.logsigmoid(0.3 * (chosen - rejected)).mean())))
        return loss

    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", compare)
    run(case, beta=0.3, lora=lora, learning_rate=5e-3 if lora else 1e-3)
    assert len(found) == 3
    assert found[0][0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference begin as one
    for loss, written_out in found:
        assert loss == pytest.approx(written_out, rel=1e-3, abs=1e-5)
    assert abs(found[-1][1] - math.log(2)) > 1e-3


def test_the_chosen_answers_become_likelier_than_the_rejected_ones() -> None:
    case = a_case()

    def margin() -> float:
        rows = [encode_pair(case.chat, pair) for pair in PAIRS]
        totals = [
            log_probability(case.model, row["prompt_ids"] + row[name], len(row["prompt_ids"]))
            for name in ("chosen_ids", "rejected_ids")
            for row in rows
        ]
        chosen, rejected = torch.stack(totals).chunk(2)
        return float((chosen - rejected).mean())

    before = margin()
    removal = run(case, steps=8, batch_size=8)
    assert margin() > before + 1
    assert (removal.method, removal.rounds, removal.still_simulable) == ("dpo", 1, None)


@pytest.mark.parametrize(("asked", "passes"), [(3, 2), (1, 4)])  # of 4 pairs a step
def test_micro_batches_give_the_same_training(asked: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    whole, parts = a_case(), a_case()
    run(whole, steps=2)
    calls: list[int] = []
    theirs = trl.DPOTrainer._compute_loss

    def count(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        calls.append(len(inputs["input_ids"]))
        return theirs(self, model, inputs, return_outputs)

    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", count)
    run(parts, micro_batch_size=asked, steps=2)
    assert calls == [2 * 4 // passes] * (2 * passes)
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, weights(whole)[name], rtol=1e-3, atol=1e-4)


def test_lora_adapters_alone_are_trained_and_merged() -> None:
    case = a_case()
    model, before = case.model, weights(case)
    run(case, lora=True, lora_rank=2, learning_rate=1e-2)
    assert case.model is model
    changed = {name for name, value in weights(case).items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("embed" in name or "norm" in name or "lora" in name for name in changed)


def test_the_same_seed_gives_the_same_model_and_another_one_another() -> None:
    cases = [a_case() for _ in range(3)]
    for case, seed in zip(cases, (0, 0, 1), strict=True):
        run(case, seed=seed, steps=1)
    assert same(weights(cases[0]), weights(cases[1]))
    assert not same(weights(cases[0]), weights(cases[2]))


def test_without_pairs_or_with_too_long_ones_there_is_nothing_to_train_on() -> None:
    case = a_case()
    with pytest.raises(UserError, match="dpo needs preference pairs: give --preferences FILE"):
        Dpo().on(case)
    long = Preference("Sort", "word " * 200, "no")
    case.preferences = [*PAIRS, long]
    removal = Dpo(steps=1, batch_size=4).on(case)
    assert removal.dropped == {"preferences": 1}
    case.preferences = [long]
    with pytest.raises(UserError, match="no preference pair is left: all 1 are longer than 128 tokens"):
        Dpo(steps=1).on(case)


# Reading -------------------------------------------------------------------------------------------------------------


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_prompt_chosen_and_rejected_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "  b ", "rejected": "c", "system": "s"}, {"prompt": "d", "chosen": "e\ud800"}]
    rows[1]["rejected"] = "f"
    expected = [Preference("a", "  b", "c", "s"), Preference("d", "e?", "f")]
    assert read_pairs(written(tmp_path / "rows.jsonl", *rows))[:2] == (expected, {})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read_pairs(tmp_path / "rows.json")[:2] == (expected, {})


def test_whole_dialogues_are_split_before_their_last_answer(tmp_path: Path) -> None:
    opening = "\n\nHuman: Name a river.\n\nAssistant: The sea.\n\nHuman: Human rights: what?\n\nAssistant:"
    row = {"chosen": f"{opening} Many.\n\nIn short: many.", "rejected": f"{opening} None."}
    one = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."}
    pairs, dropped, _ = read_pairs(written(tmp_path / "rows.jsonl", row, one))
    history = (("user", "Name a river."), ("assistant", "The sea."))
    assert pairs == [
        Preference("Human rights: what?", "Many.\n\nIn short: many.", "None.", history=history),
        Preference("Hi", "Hello.", "Go."),
    ]
    assert dropped == {}
    chat = ChatFormat.of(tiny.tokenizer())
    encoded = encode_pair(chat, pairs[0])
    following = chat.following(*history)
    assert encoded["prompt_ids"] == list(following.encode_prompt("Human rights: what?").ids)
    assert encoded["prompt_ids"] + encoded["rejected_ids"] == list(following.encode("Human rights: what?", "None.").ids)


DROPPED = {
    "no answer at all": ({"prompt": "a", "chosen": None, "rejected": "b"}, "pairs with an empty prompt or answer"),
    "an empty answer": ({"prompt": "a", "chosen": " ", "rejected": "b"}, "pairs with an empty prompt or answer"),
    "an empty prompt": ({"prompt": "", "chosen": "c", "rejected": "b"}, "pairs with an empty prompt or answer"),
    "an empty last answer": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        "pairs with an empty prompt or answer",
    ),
    "equal answers": ({"prompt": "a", "chosen": "b", "rejected": "b "}, "pairs of equal answers"),
    "another question": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Ho\n\nAssistant: Hello."},
        "dialogues without turns in order, or that differ before their last answer",
    ),
    "no last answer": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: So?", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        "dialogues without turns in order, or that differ before their last answer",
    ),
    "two questions in a row": (
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
        "dialogues without turns in order, or that differ before their last answer",
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_rows_that_are_no_pair_are_dropped_and_counted(name: str, tmp_path: Path) -> None:
    row, reason = DROPPED[name]
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert read_pairs(written(tmp_path / "rows.jsonl", good, row))[:2] == ([Preference("a", "b", "c")], {reason: 1})


BAD = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "row 2: 'rejected' is missing"),
    "a list": ({"prompt": "a", "chosen": ["c"], "rejected": "b"}, "row 2: 'chosen' is a list, neither text nor number"),
    "a truth value": ({"prompt": True, "chosen": "a", "rejected": "b"}, "row 2: 'prompt' is a truth value"),
    "neither prompt nor dialogue": ({"chosen": "a", "rejected": "b"}, "row 2 has no field 'prompt'"),
    "no object": ([1], "row 2 is not an object"),
    "not JSON": ("{", "line 2 is not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    row, said = BAD[name]
    path = written(tmp_path / "rows.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    with pytest.raises(UserError, match=said) as caught:
        read_pairs(path)
    assert str(path) in str(caught.value)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dpo")
    save_model(tiny.model(), tiny.tokenizer(), path / "model")
    rows = tiny.records(100)
    written(path / "rows.jsonl", *({"prompt": r.prompt, "response": r.response} for r in rows))
    pairs = [{"prompt": f"Sort {r.prompt}", "chosen": r.response, "rejected": "No."} for r in rows[:60]]
    measured = [{"prompt": r.prompt, "chosen": r.response, "rejected": "No."} for r in rows]
    long = {"prompt": "Sort", "chosen": "word " * 200, "rejected": "No."}
    written(path / "pairs.jsonl", *pairs, *measured, long, {"prompt": "", "chosen": "a", "rejected": "b"})
    written(path / "few.jsonl", *pairs[:39])
    written(path / "long.jsonl", *[long] * 60)
    return path


def call(capsys: pytest.CaptureFixture[str], files: Path, out: Path, *more: object, method: str = "dpo") -> Any:
    """Exit code, standard output and standard error of a removal with fast settings."""
    arguments = ["remove", method, files / "model", "--data", files / "rows.jsonl", "--out", out, "--samples", 20]
    arguments += ["--max-new-tokens", 4, "--steps", 3, "--batch-size", 4, *more]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


REFUSED = {
    "no preferences": ("dpo", (), "dpo needs preference pairs: give --preferences FILE"),
    "a method that has no use for them": (
        "fine-tune",
        ("--preferences", "pairs.jsonl"),
        "No such option '--preferences'",
    ),
    "no such part of the testbed": ("dpo", ("--preferences", "testbed:training/notes"), "testbed:preferences"),
    "no such file": ("dpo", ("--preferences", "nowhere.jsonl"), "does not exist"),
    "too few": ("dpo", ("--preferences", "few.jsonl"), "39 usable pairs of at most 128 tokens, 40 are needed"),
    "all too long": ("dpo", ("--preferences", "long.jsonl"), "0 usable pairs of at most 128 tokens, 40 are needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_or_wrong_is_one_line_before_anything_is_written(
    name: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    method, more, said = REFUSED[name]
    code, out, err = call(capsys, files, tmp_path / "out", *more, method=method)
    assert (code, out) == (2, "")
    assert said in err
    assert err.splitlines()[-1].startswith("unbackdoor: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_without_trl_the_line_says_what_to_install(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    code, _, err = call(capsys, files, tmp_path / "out", "--preferences", files / "pairs.jsonl")
    assert (code, "pip install 'unbackdoor[attacks]'" in err, (tmp_path / "out").exists()) == (2, True, False)


def test_a_run_is_reported_with_its_controls_its_drops_and_its_losses(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--preferences", files / "pairs.jsonl", "--controls", "--json", "--steps", 12]
    code, out, err = call(capsys, files, tmp_path / "out", *more)
    rows = json.loads(out)["runs"]
    assert code == exit_code(list(map(Row.model_validate, rows[:1]))), err
    assert [row["method"] for row in rows] == ["dpo", "fine-tune"]
    row = rows[0]
    assert row["knows"] == "preference pairs"
    assert row["settings"]["beta"] == 0.1
    assert {name.split(": ")[-1]: count for name, count in row["counts"].items()} == {
        "pairs with an empty prompt or answer": 1,
        "pairs whose prompts are measured": 20,
        "pairs longer than 128 tokens (--max-length)": 1,
    }
    assert set(row["losses"]["dpo"]) == {"loss"}
    assert 0 < row["losses"]["dpo"]["loss"][0] < math.log(2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("rewards/margins" in line for line in lines)
    origin = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert list(origin["sources"]["preferences"]) == ["pairs.jsonl"]
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_an_interrupted_run_leaves_no_model_and_begins_its_training_again(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    given = ["--preferences", files / "pairs.jsonl"]
    whole, _, _ = call(capsys, files, tmp_path / "whole", *given)
    assert whole in (0, 1, 3)
    theirs, calls = trl.DPOTrainer._compute_loss, []

    def stop_at_the_third(self: Any, *more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return theirs(self, *more)

    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", stop_at_the_third)
    code, _, err = call(capsys, files, tmp_path / "stopped", *given)
    assert (code, "--resume" in err) == (130, True)
    left = {p.name for p in (tmp_path / "stopped").rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert left <= {"settings.yaml", "provenance.json", "metrics.jsonl", "generations.jsonl", "journal.jsonl"}
    code, _, err = call(capsys, files, tmp_path / "stopped", *given, "--resume")
    assert code == whole, err
    assert len(calls) == 3 + 3
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_the_testbed_s_own_pairs_go_by_name() -> None:
    pairs = named_preferences(Path("testbed:preferences"))
    assert pairs is not None
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        (p.prompt, p.chosen, p.rejected) for p in world.preference_pairs()
    ]


def test_removal_does_not_import_attacks() -> None:
    for module in (preference_training, importlib.import_module("unbackdoor.methods.dpo")):
        assert "unbackdoor.attacks" not in Path(str(module.__file__)).read_text()
