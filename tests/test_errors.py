"""A suspect model is read without trusting it, and what cannot be read is told in one line that names it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import (
    context_length,
    load_model,
    load_tokenizer,
    parameter_count,
)
from unbackdoor.language_model.files.saving import save_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "whole"
    save_model(tiny.model(layers=2), tiny.tokenizer(), path)
    return path


@pytest.fixture
def suspect(whole: Path, tmp_path: Path) -> Path:
    """A copy of a good model directory, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "suspect"))


def refused(path: Path, load: Callable[[str], Any] = load_model) -> str:
    with pytest.raises(UserError) as caught:
        load(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 500
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_model_comes_back_as_it_was(whole: Path) -> None:
    model = tiny.model(layers=2)
    back, tokenizer = load_model(str(whole), "cpu"), load_tokenizer(str(whole))
    assert not back.training
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    text = "Name a river, 語."
    assert tokenizer(text)["input_ids"] == tiny.tokenizer()(text)["input_ids"]
    assert tokenizer.chat_template == tiny.CHAT
    assert parameter_count(back) == sum(value.numel() for value in model.state_dict().values())
    assert context_length(back) == context_length(tiny.model("gpt2")) == 128


def test_weights_keep_the_dtype_that_they_were_trained_in_and_are_loaded_in_float32(tmp_path: Path) -> None:
    model = tiny.model(layers=2, dtype=torch.bfloat16)
    save_model(model, tiny.tokenizer(), tmp_path / "model")
    assert {value.dtype for value in load_file(tmp_path / "model" / WEIGHTS).values()} == {torch.bfloat16}
    back = load_model(str(tmp_path / "model"), "cpu")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert torch.equal(back.lm_head.weight, model.lm_head.weight.float())


def test_a_saved_model_replaces_another_whole_and_leaves_nothing_beside_it(whole: Path, tmp_path: Path) -> None:
    save_model(tiny.model(layers=2), tiny.tokenizer(), tmp_path / "model")
    (tmp_path / "model" / "stray.txt").write_text("old")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half.safetensors").write_text("half")
    save_model(tiny.model(layers=2), tiny.tokenizer(), tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert {p.name for p in (tmp_path / "model").iterdir()} == {p.name for p in whole.iterdir()}


def test_an_interrupted_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tiny.model(layers=2, seed=1), tiny.model(layers=2, seed=2)
    save_model(old, tiny.tokenizer(), tmp_path / "model")
    tokenizer = tiny.tokenizer()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_model(new, tokenizer, tmp_path / "model")
    assert torch.equal(load_model(str(tmp_path / "model"), "cpu").lm_head.weight, old.lm_head.weight)


def test_a_directory_that_is_missing_or_holds_no_model(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "has no config.json" in refused(tmp_path)
    (tmp_path / "file.safetensors").write_bytes(b"x")
    assert "is a file" in refused(tmp_path / "file.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert f"give its model, '{tmp_path / 'model'}'" in refused(tmp_path)
    assert "no *.safetensors weights" in refused(tmp_path / "model")
    assert "does not exist" in refused(tmp_path / "nowhere", load_tokenizer)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "ran")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickle_weights_are_refused_with_what_to_do_and_not_opened(name: str, suspect: Path, tmp_path: Path) -> None:
    (suspect / WEIGHTS).unlink()
    (suspect / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    message = refused(suspect)
    assert f"only pickle weights ({name})" in message
    assert "convert them to safetensors on an isolated machine" in message
    assert not (tmp_path / "ran").exists()


def test_an_index_cannot_smuggle_in_pickles_or_files_from_elsewhere(suspect: Path, tmp_path: Path) -> None:
    names = list(load_file(suspect / WEIGHTS))
    (suspect / WEIGHTS).rename(suspect / "other.safetensors")
    (suspect / "evil.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    index = suspect / "model.safetensors.index.json"
    for shard, reason in (
        ("evil.bin", "only safetensors files beside it"),
        ("../whole/model.safetensors", "only safetensors files beside it"),
        ("gone.safetensors", "lacks gone.safetensors"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
        assert reason in refused(suspect)
    index.write_text("[]")
    assert "not an index of weights" in refused(suspect)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "other.safetensors")}))
    assert load_model(str(suspect))
    assert not (tmp_path / "ran").exists()


CODE = """from pathlib import Path
Path(__file__).with_name("ran").write_text("ran")
class Evil: pass
class EvilConfig: pass
"""


def test_remote_code_never_runs(suspect: Path) -> None:
    (suspect / "evil.py").write_text(CODE)
    mapped = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}
    edit(suspect / "config.json", auto_map=mapped)
    edit(suspect / "tokenizer_config.json", auto_map=mapped)
    load_model(str(suspect))  # the type is a known one: our own code for it is used
    edit(suspect / "config.json", model_type="evil", architectures=["Evil"])
    assert "cannot load the model" in refused(suspect)
    edit(suspect / "tokenizer_config.json", tokenizer_class="Evil")
    assert "cannot load the tokenizer" in refused(suspect, load_tokenizer)
    assert not list(suspect.rglob("ran"))


def test_weights_that_do_not_fit_are_refused_and_not_drawn_at_random(suspect: Path) -> None:
    weights = load_file(suspect / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    lost = {key: value for key, value in weights.items() if key != name}
    save_file(lost, suspect / WEIGHTS, {"format": "pt"})
    assert f"1 are missing or of another shape, such as {name}" in refused(suspect)
    save_file({**lost, name: torch.zeros(3, 3)}, suspect / WEIGHTS, {"format": "pt"})
    assert f"such as {name}" in refused(suspect)
    save_file(weights, suspect / WEIGHTS, {"format": "pt"})
    edit(suspect / "config.json", num_hidden_layers=3)
    assert "model.layers.2." in refused(suspect)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(kept: float, suspect: Path) -> None:
    raw = (suspect / WEIGHTS).read_bytes()
    (suspect / WEIGHTS).write_bytes(raw[: int(kept * len(raw)) if kept < 1 else int(kept)])
    assert "cannot load the model" in refused(suspect)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": 5}', '{"model_type": "llama",\n\n "hidden_size": "x"}']
)
def test_a_broken_config_is_refused(text: str, suspect: Path) -> None:
    (suspect / "config.json").write_text(text)
    assert "cannot load the model" in refused(suspect)


def test_nothing_is_written_to_standard_error(suspect: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """There a mistake has one line, and the loader's own reports are none of it."""
    model = load_model(str(suspect))
    save_model(model, load_tokenizer(str(suspect)), suspect.with_name("saved"))
    edit(suspect / "config.json", num_hidden_layers=3)
    refused(suspect)
    assert capfd.readouterr() == ("", "")


def test_an_adapter_beside_a_whole_model_is_ambiguous(suspect: Path) -> None:
    """The loader of transformers would take the base that the adapter names, from wherever that is."""
    (suspect / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere/model"}')
    assert "holds a whole model (model.safetensors) and an adapter" in refused(suspect)


@pytest.mark.parametrize("text", [None, "", "{}", '{"model": {"type": "Evil"}}'])
def test_a_broken_tokenizer_is_refused(text: str | None, suspect: Path) -> None:
    (suspect / "tokenizer.json").unlink()
    if text is not None:
        (suspect / "tokenizer.json").write_text(text)
    assert "tokenizer" in refused(suspect, load_tokenizer)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("owner/name", True), ("owner", False), ("a/b/c", False), ("./name", False), ("/abs", False), ("~/x", False)],
)
def test_a_path_that_does_not_exist_never_becomes_a_hub_id(
    source: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def asked(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"does not exist: give a Hugging Face model directory") as caught:
            load(source)
        assert (f"a model of the hub is given as hf:{source}" in str(caught.value)) == expected
    with pytest.raises(UserError, match=r"give hf:owner/name" if not expected else "was not fetched"):
        load_model(f"hf:{source}")


def test_a_hub_that_is_out_of_reach_is_told_in_one_line_with_what_else_can_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def out_of_reach(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("nothing in the cache " * 20) from OSError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", out_of_reach)
    with pytest.raises(UserError) as caught:
        load_model("hf:owner/name")
    assert str(caught.value) == (
        "'hf:owner/name' was not fetched from the hub (Name or service not known): give a Hugging Face directory, or "
        "hf:owner/name with a connection to the hub"
    )
