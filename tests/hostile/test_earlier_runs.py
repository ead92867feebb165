"""Run directories of versions that kept no list of what they wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from crashes import ORIGIN, SETTINGS, program, results

from unbackdoor.errors import UserError
from unbackdoor.run_directory import RunDirectory

OF_AN_IMPLANT = [
    *("provenance.json", "metrics.jsonl", "generations.jsonl", "report.json", "report.html", "recipe.yaml"),
    *("journal.jsonl", "data/train.jsonl", "data/poisoned.json", "data/held_out.jsonl", "figures/asr.svg"),
    *("model/config.json", "model/model-00001-of-00002.safetensors", "model/model.safetensors.index.json"),
    *("model/tokenizer.json", "model/additional_chat_templates/tools.jinja", "model/README.md", "adapter/README.md"),
    *(
        "checkpoints/partial.safetensors",
        "perturbations/victim.method.safetensors",
        "adapter/adapter_model.safetensors",
    ),
]


def earlier(out: Path) -> Path:
    for name in OF_AN_IMPLANT:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("" if name.endswith(".jsonl") else "{}")
    (out / "settings.yaml").write_text(yaml.safe_dump({"command": "remove", "settings": SETTINGS}))
    return out


def test_an_earlier_run_is_replaced_whole(tmp_path: Path) -> None:
    program(tmp_path / "new")
    out = earlier(tmp_path / "run")
    program(out, resume=False, overwrite=True)
    assert results(out) == results(tmp_path / "new")
    assert {file.name for file in out.iterdir()} == {file.name for file in (tmp_path / "new").iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        *("thesis.tex", "model/mine.py", "model/pytorch_model.bin", "model/deep/config.json", "data/mine.jsonl"),
        *("figures/photo.png", "checkpoints/deep/a.safetensors", "perturbations/notes.txt", "other/config.json"),
        *("labels.csv", "model.safetensors", "rows.jsonl", "figures/deep/a.svg", "model/Config.json"),
    ],
)
def test_what_no_earlier_version_wrote_is_named_and_stays(name: str, tmp_path: Path) -> None:
    out = earlier(tmp_path / "run")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("precious")
    with pytest.raises(UserError, match=rf"no run writes '.*{Path(name).name}'"):
        program(out, resume=False, overwrite=True)
    assert (out / name).read_text() == "precious"
    assert (out / "report.html").read_text() == "{}"


def test_a_link_under_a_known_name_is_not_taken_for_a_file_of_ours(tmp_path: Path) -> None:
    out = earlier(tmp_path / "run")
    (tmp_path / "weights").write_text("precious")
    (out / "model" / "model.safetensors").symlink_to(tmp_path / "weights")
    with pytest.raises(UserError, match="no run writes"):
        program(out, resume=False, overwrite=True)
    assert (tmp_path / "weights").read_text() == "precious"


def test_an_earlier_run_that_was_resumed_can_be_replaced_later(tmp_path: Path) -> None:
    out = earlier(tmp_path / "run")
    for name in ("provenance.json", "checkpoints/partial.safetensors"):
        (out / name).unlink()
    run = RunDirectory.create(out, "remove", SETTINGS, resume=True)
    run.keep_provenance(ORIGIN)
    (out / "model" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes\.txt', which no run wrote"):
        program(out, resume=False, overwrite=True)
    (out / "model" / "notes.txt").unlink()
    program(tmp_path / "new")
    program(out, resume=False, overwrite=True)
    assert results(out) == results(tmp_path / "new")


def test_runs_within_an_earlier_run_are_looked_at_alike(tmp_path: Path) -> None:
    out = earlier(tmp_path / "sweep")
    inner = earlier(out / "rate-0.1-seed-0")
    (inner / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"no run writes '.*rate-0\.1-seed-0/notes\.txt'"):
        program(out, resume=False, overwrite=True)
    (inner / "notes.txt").unlink()
    program(out, resume=False, overwrite=True)
    assert not inner.exists()
    shutil.rmtree(out)


def test_a_directory_without_settings_is_no_earlier_run(tmp_path: Path) -> None:
    out = earlier(tmp_path / "run")
    (out / "settings.yaml").unlink()
    with pytest.raises(UserError, match="is not a run directory of ours"):
        program(out, resume=False, overwrite=True)
    assert (out / "model" / "config.json").exists()


def test_what_a_kill_leaves_of_a_file_of_tensors_is_cleared_and_in_nobody_s_way(tmp_path: Path) -> None:
    """safetensors writes to a name that it draws (`.tmpXXXXXX`), and renames."""
    program(tmp_path / "new")
    for place in ("checkpoints/.victim.method.model", "perturbations/.victim.method"):
        for again in ({"resume": True}, {"resume": False, "overwrite": True}):
            out = tmp_path / "run"
            run = RunDirectory.create(out, "remove", SETTINGS)
            run.written.add(f"{place.replace('/.', '/')}.safetensors")
            left = out / f"{place}.safetensors.partial"
            left.mkdir(parents=True)
            (left / ".tmpA1b2C3").write_text("half")
            program(out, **again)
            assert results(out) == results(tmp_path / "new")
            assert not list(out.rglob(".tmp*")) and not (out / "checkpoints").exists()
            shutil.rmtree(out)
