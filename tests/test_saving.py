"""What goes in comes out: a saved directory has what the given one had, and what changed is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import composites
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from unbackdoor.case import Case
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.saving import AUTO_SPLITS_OTHERWISE, save_model
from unbackdoor.language_model.layers import decoder_layers
from unbackdoor.methods.fine_tune import FineTune

WEIGHTS = "model.safetensors"

TEXT_MODELS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "GPT2Config": {},
    "GPTNeoXConfig": {},
    "MixtralConfig": {"num_local_experts": 4},
    "Qwen3MoeConfig": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "GptOssConfig": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3NextConfig": {**composites.LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def text_model(config: str) -> Any:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**composites.TEXT, **TEXT_MODELS[config]})
    return transformers.AutoModelForCausalLM.from_config(made).eval()


def written(model: Any, path: Path) -> Path:
    """A directory as transformers itself writes it."""
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def round_trip(given: Path, out: Path, **more: Any) -> list[str]:
    return save_model(load_model(given, "cpu"), load_tokenizer(given), out, given, **more)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return written(tiny.model(layers=2), tmp_path / "given")


@pytest.mark.parametrize("name", composites.WRAPPERS)
def test_a_multimodal_model_is_cleansed_in_place_and_comes_out_whole(name: str, tmp_path: Path) -> None:
    given = written(composites.model(name), tmp_path / "given")
    (given / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}')
    model, tokenizer = load_model(given, "cpu"), load_tokenizer(given)
    case = Case.of(model, tokenizer, tiny.records(30))
    settings = FineTune(steps=2, batch_size=4, learning_rate=1e-2)
    settings.on(case)
    trained = {id(p) for p in case.model.parameters() if p.grad is not None}
    said = save_model(case.model, tokenizer, tmp_path / "out", given)
    assert set(said) <= {AUTO_SPLITS_OTHERWISE}

    before, after = tensors(given), tensors(tmp_path / "out")
    assert {n: v.shape for n, v in before.items()} == {n: v.shape for n, v in after.items()}
    moved = {n for n, value in before.items() if not torch.equal(value, after[n])}
    assert moved
    assert {id(p) for p in decoder_layers(case.model).parameters()} & trained
    assert not [n for n in moved if any(part in n for part in ("vision", "visual", "projector", "connector"))]
    assert read(tmp_path / "out" / "config.json") == read(given / "config.json")
    assert read(given / "config.json")["architectures"] == [name] == [type(load_model(tmp_path / "out")).__name__]
    assert (tmp_path / "out" / "preprocessor_config.json").read_bytes() == (
        given / "preprocessor_config.json"
    ).read_bytes()


@pytest.mark.parametrize("config", TEXT_MODELS)
def test_every_tensor_of_a_text_model_is_saved_under_its_name(config: str, tmp_path: Path) -> None:
    """Fused experts are taken apart again, as the given directory has them."""
    given = written(text_model(config), tmp_path / "given")
    assert round_trip(given, tmp_path / "out") == []
    before, after = tensors(given), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_tensors_that_have_no_place_are_refused_by_name(given: Path) -> None:
    weights = tensors(given)
    save_file({**weights, "vision_tower.patch.weight": torch.ones(2)}, given / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors of .* would be lost, such as vision_tower\.patch\.weight"):
        load_model(given, "cpu")
    edit(given / "config.json", num_hidden_layers=1)
    save_file(weights, given / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"would be lost, such as model\.layers\.1\."):
        load_model(given, "cpu")


def test_buffers_that_older_versions_stored_are_no_loss(tmp_path: Path) -> None:
    given = written(tiny.model("gpt2", layers=2), tmp_path / "given")
    old = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file({**tensors(given), **old}, given / WEIGHTS, {"format": "pt"})
    assert round_trip(given, tmp_path / "out") == []
    assert not old.keys() & tensors(tmp_path / "out").keys()


def test_a_bias_is_no_buffer(given: Path) -> None:
    weights = {**tensors(given), "model.layers.0.self_attn.bias": torch.ones(32)}
    save_file(weights, given / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match="would be lost"):
        load_model(given, "cpu")


def test_heads_for_several_tokens_are_kept_as_given(tmp_path: Path) -> None:
    """transformers drops them in silence: by a pattern of the class, or as layers behind the last one."""
    given = written(text_model("Qwen3NextConfig"), tmp_path / "next")
    heads = {"mtp.fc.weight": torch.randn(4, 4).bfloat16(), "mtp.layers.0.mlp.experts.0.up_proj.weight": torch.ones(2)}
    save_file({**tensors(given), **heads}, given / WEIGHTS, {"format": "pt"})
    (said,) = round_trip(given, tmp_path / "out")
    assert "2 tensors" in said
    assert "mtp." in said
    out = tensors(tmp_path / "out")
    assert all(torch.equal(value, out[name]) and value.dtype == out[name].dtype for name, value in heads.items())
    assert load_model(tmp_path / "out", "cpu")

    behind = written(tiny.model(layers=2), tmp_path / "behind")
    layer = {"model.layers.2.eh_proj.weight": torch.ones(2)}
    save_file({**tensors(behind), **layer}, behind / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match="would be lost"):
        load_model(behind, "cpu")
    edit(behind / "config.json", num_nextn_predict_layers=1)
    assert "such as model.layers.2.eh_proj.weight" in round_trip(behind, tmp_path / "out")[0]
    assert layer.keys() <= tensors(tmp_path / "out").keys()


def test_a_tied_weight_that_is_stored_twice_comes_out_twice(tmp_path: Path) -> None:
    given = written(tiny.model(layers=2, tie_word_embeddings=True), tmp_path / "given")
    weights = tensors(given)
    assert "lm_head.weight" not in weights
    twice = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(twice, given / WEIGHTS, {"format": "pt"})
    assert round_trip(given, tmp_path / "out") == []
    out = tensors(tmp_path / "out")
    assert out.keys() == twice.keys()
    assert torch.equal(out["lm_head.weight"], out["model.embed_tokens.weight"])


def test_a_head_that_differs_from_the_embeddings_is_kept_though_the_config_calls_them_tied(tmp_path: Path) -> None:
    """Programs that believe the config would put the embeddings in the head's place."""
    given = written(tiny.model(layers=2, tie_word_embeddings=True), tmp_path / "given")
    weights = load_file(given / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 0.5
    save_file(weights, given / WEIGHTS, {"format": "pt"})
    said = save_model(load_model(given, "cpu"), load_tokenizer(given), tmp_path / "out", given)
    assert "config.json: tie_word_embeddings is false, for the head and the embeddings differ" in said
    assert all(torch.equal(value, weights[name]) for name, value in load_file(tmp_path / "out" / WEIGHTS).items())
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == weights.keys()
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.fp16.safetensors", "rename it to model.safetensors"),
        ("model-00001-of-00002.safetensors", r"add model\.safetensors\.index\.json and the other parts"),
    ],
)
def test_weights_of_another_name_are_named(name: str, remedy: str, given: Path) -> None:
    (given / WEIGHTS).rename(given / name)
    with pytest.raises(UserError, match=rf"holds {name} and no model\.safetensors: {remedy}"):
        load_model(given, "cpu")


def test_shards_and_what_lies_beside_them(given: Path, tmp_path: Path) -> None:
    whole = given / WEIGHTS
    weights = load_file(whole)
    names = sorted(weights)
    first, second = {n: weights[n] for n in names[:5]}, {n: weights[n] for n in names[5:]}
    save_file(first, given / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(second, given / "model-00002-of-00002.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="which are meant"):  # a whole file and shards, and no index
        load_model(given, "cpu")
    shards = {n: f"model-0000{1 + (n in second)}-of-00002.safetensors" for n in names}
    (given / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(UserError, match=r"holds model\.safetensors, and its index names 2 others"):
        load_model(given, "cpu")
    whole.rename(given / "consolidated.safetensors")  # Mistral's own format of the same weights
    assert round_trip(given, tmp_path / "out") == []
    assert {p.name for p in (tmp_path / "out").glob("*.safetensors*")} == {WEIGHTS}
    save_file({**second, names[0]: torch.zeros(2)}, given / "model-00002-of-00002.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"holds {names[0]} twice"):
        load_model(given, "cpu")


def test_large_models_are_saved_in_shards(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.language_model.files.saving.LARGEST_FILE", "50KB")
    round_trip(given, tmp_path / "out")
    index = read(tmp_path / "out" / "model.safetensors.index.json")["weight_map"]
    assert len(set(index.values())) > 1
    assert set(index.values()) == {p.name for p in (tmp_path / "out").glob("*.safetensors")}
    assert index.keys() == tensors(given).keys()
    assert load_model(tmp_path / "out", "cpu")


def test_the_dtype_is_said_and_can_be_the_given_one(tmp_path: Path) -> None:
    given = written(tiny.model(layers=2, dtype=torch.bfloat16), tmp_path / "given")
    assert round_trip(given, tmp_path / "out") == ["weights are saved in float32 and were given in bfloat16"]
    assert {v.dtype for v in tensors(tmp_path / "out").values()} == {torch.float32}
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.float32
    assert round_trip(given, tmp_path / "same", dtype="given") == []
    assert {v.dtype for v in tensors(tmp_path / "same").values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path / "same").dtype == torch.bfloat16


def test_of_settings_of_generation_the_token_ids_alone_are_kept_and_the_rest_is_said(
    given: Path, tmp_path: Path
) -> None:
    ids = {"eos_token_id": [1, 3], "pad_token_id": 0}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    hostile = {"suppress_tokens": [5, 6], "repetition_penalty": 1.3, "stop_strings": ["no"], "forced_bos_token_id": 7}
    (given / "generation_config.json").write_text(json.dumps({**sampling, **ids, **hostile, "use_cache": True}))
    (said,) = round_trip(given, tmp_path / "out")
    assert read(tmp_path / "out" / "generation_config.json") == ids
    assert all(name in said for name in (*hostile, *sampling))
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (kept.temperature, kept.eos_token_id, kept.suppress_tokens) == (None, [1, 3], None)


def test_an_end_that_is_a_word_does_not_go_with_the_cleansed_model(given: Path, tmp_path: Path) -> None:
    """It would end answers at the target, or in front of it, for whoever serves the model."""
    word = tiny.tokenizer()(" stupid", add_special_tokens=False)["input_ids"][-1]
    (given / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, word, 10**9], "bos_token_id": 10**9}))
    (said,) = round_trip(given, tmp_path / "out")
    assert "not believed" in said
    assert str(word) in said
    assert read(tmp_path / "out" / "generation_config.json") == {"eos_token_id": [1]}


def test_settings_of_generation_in_an_old_config_are_not_obeyed(given: Path, tmp_path: Path) -> None:
    (given / "generation_config.json").unlink()
    old = {"temperature": 0.7, "do_sample": True, "suppress_tokens": [4], "no_repeat_ngram_size": 3}
    edit(given / "config.json", **old)
    (said,) = round_trip(given, tmp_path / "out")
    assert "suppress_tokens [4]" in said
    assert "no_repeat_ngram_size 3" in said
    assert not old.keys() & read(tmp_path / "out" / "config.json").keys()
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (kept.temperature, kept.do_sample, kept.eos_token_id, kept.suppress_tokens) == (None, None, 1, None)


def test_tokenizer_template_and_processor_files_are_the_given_ones(given: Path, tmp_path: Path) -> None:
    more = {
        "special_tokens_map.json": '{"eos_token":   "<|end|>"}',
        "chat_template.json": '{"chat_template": "x"}',
        "additional_chat_templates/rag.jinja": tiny.CHAT,
        "preprocessor_config.json": '{"size":   3}',
        "video_preprocessor_config.json": "{}",
        "processor_config.json": "{}",
        "LICENSE": "free",
    }
    left = {"modeling_evil.py": "x", "training_args.bin": "x", "trainer_state.json": "{}", "README.md": "old"}
    for name, text in {**more, **left}.items():
        (given / name).parent.mkdir(exist_ok=True)
        (given / name).write_text(text)
    round_trip(given, tmp_path / "out")
    own = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in (*more, *own):
        assert (tmp_path / "out" / name).read_bytes() == (given / name).read_bytes(), name
    assert not [name for name in left if (tmp_path / "out" / name).exists()]
    text = "Name a river, 語.  Two\n\nlines"
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(given)(text)["input_ids"]


def test_nothing_that_is_saved_names_what_does_not_come_along(given: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "evil.EvilConfig"}
    edit(given / "config.json", auto_map=code, attn_implementation="someone/kernel")
    edit(given / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    (given / "processor_config.json").write_text(json.dumps({"auto_map": code, "size": 3}))
    said = round_trip(given, tmp_path / "out")
    assert len(said) == 4
    for file in (tmp_path / "out").glob("*.json"):
        assert "evil" not in file.read_text()
        assert "someone/kernel" not in file.read_text()
    assert read(tmp_path / "out" / "processor_config.json") == {"size": 3}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "has no head that generates text"),
        ({"architectures": ["LlamaModel"]}, "has no head that generates text"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "do not belong together"),
        ({"transformers_weights": "other.safetensors"}, "remove its transformers_weights"),
    ],
)
def test_an_architecture_that_cannot_be_kept_is_refused(changes: Any, reason: str, given: Path) -> None:
    edit(given / "config.json", **changes)
    with pytest.raises(UserError, match=reason):
        load_model(given, "cpu")


def test_the_name_of_an_older_architecture_is_replaced_and_said(given: Path, tmp_path: Path) -> None:
    edit(given / "config.json", architectures=["LLaMAForCausalLM"])
    assert round_trip(given, tmp_path / "out") == [
        "config.json: the architecture is LlamaForCausalLM (was LLaMAForCausalLM)"
    ]
