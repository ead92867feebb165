"""The forms in which models are published, adapters, GGUF files and quantised checkpoints, work or say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import unbackdoor
from unbackdoor.cli import main
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.adapter_export import check_adapter, save_adapter
from unbackdoor.language_model.files.given_form import check_base, form_of
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.saving import save_model

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def written(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(4, 400, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def adapter(base: Path, path: Path, resize: int | None = None, **settings: Any) -> Any:
    """An adapter with random weights on a base, stored as peft stores it; the model with it, as peft computes it."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    if resize is not None:
        model.resize_token_embeddings(resize)
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(path)
    edit(path / "adapter_config.json", base_model_name_or_path=str(base))
    return wrapped.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tiny.model(layers=2), tmp_path / "base")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "lora_alpha": 32},
        {"trainable_token_indices": [4, 9]},
        {"resize": 430, "modules_to_save": ["embed_tokens", "lm_head"]},
        {"resize": 430},
        {"resize": 430, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_is_merged_into_its_base_as_peft_computes_it(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    expected = logits(adapter(base, tmp_path / "adapter", **settings))
    model = load_model(tmp_path / "adapter", "cpu")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert (logits(model)[..., :420] - logits(load_model(base, "cpu"))).abs().max() > 0.01

    given = ModelSource.find(tmp_path / "adapter")
    save_model(model, load_tokenizer(tmp_path / "adapter"), tmp_path / "out", given)
    torch.testing.assert_close(logits(load_model(tmp_path / "out", "cpu")), expected, rtol=1e-4, atol=1e-4)
    assert not list((tmp_path / "out").glob("adapter*"))
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == load_file(base / WEIGHTS).keys()
    assert form_of(tmp_path / "adapter") == [f"the adapter '{tmp_path / 'adapter'}' was merged into its base '{base}'"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"resize": 430, "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_on_one_of_two_tied_weights_changes_that_one_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    base = written(tiny.model(layers=2, tie_word_embeddings=True), tmp_path / "base")
    expected = logits(adapter(base, tmp_path / "adapter", **settings))
    model = load_model(tmp_path / "adapter", "cpu")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    said = save_model(model, load_tokenizer(base), tmp_path / "out", tmp_path / "adapter")
    assert "config.json: tie_word_embeddings is false, for the head and the embeddings differ" in said
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    for again in (load_model(tmp_path / "out", "cpu"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        assert torch.equal(logits(again), logits(model))


def test_an_adapter_that_leaves_tied_weights_alone_leaves_them_tied(tmp_path: Path) -> None:
    base = written(tiny.model(layers=2, tie_word_embeddings=True), tmp_path / "base")
    for name, settings in (("a", {}), ("b", {"trainable_token_indices": [4, 9]})):
        expected = logits(adapter(base, tmp_path / name, **settings))
        model = load_model(tmp_path / name, "cpu")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        assert save_model(model, load_tokenizer(base), tmp_path / "out", tmp_path / name) == []
        assert load_file(tmp_path / "out" / WEIGHTS).keys() == load_file(base / WEIGHTS).keys()


def test_the_base_that_is_given_counts_and_not_the_one_that_is_named(base: Path, tmp_path: Path) -> None:
    expected = logits(adapter(base, tmp_path / "adapter"))
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="elsewhere/model")
    with pytest.raises(UserError, match=r"is an adapter of 'elsewhere/model', .*: give its base model with --base DIR"):
        load_model(tmp_path / "adapter", "cpu")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter", "cpu", base)), expected, rtol=1e-4, atol=1e-4)
    check_base(base, [tmp_path / "adapter"])
    with pytest.raises(UserError, match="leave it out"):
        check_base(base, [base])


def test_an_adapters_own_tokenizer_is_taken_and_else_its_bases(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "adapter")
    assert load_tokenizer(tmp_path / "adapter").chat_template == tiny.CHAT
    tiny.tokenizer("{{ messages[0]['content'] }}").save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(tmp_path / "adapter")
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    save_model(load_model(tmp_path / "adapter", "cpu"), tokenizer, tmp_path / "out", tmp_path / "adapter")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == tokenizer.chat_template


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING, which does not change weights"),
        ({"peft_type": "PREFIX_TUNING"}, "cannot be merged"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "has megatron_config"),
        ({"target_modules": ["up_proj"]}, "does not fit the base"),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, "does not fit the base"),
        ({"r": 3}, r"does not fit the base .*q_proj\.lora_A\S* has another shape there: give its own base with --base"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    changes: dict[str, Any], reason: str, base: Path, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", **changes)
    with pytest.raises(UserError, match=reason):
        load_model(tmp_path / "adapter", "cpu")


def test_an_adapter_in_pickles_or_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "adapter")
    adapter(base, tmp_path / "second")
    edit(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="is an adapter itself"):
        load_model(tmp_path / "second", "cpu")
    (tmp_path / "adapter" / ADAPTER).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle"):
        load_model(tmp_path / "adapter", "cpu")


@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_a_gguf_file_is_loaded_with_its_tokenizer_and_saved_as_a_directory(kind: str | None, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model, tokenizer = tiny.model(layers=2), tiny.tokenizer()
    file = gguf_files.write(tmp_path / "a.gguf", model, tokenizer, kind)
    loaded, own = load_model(file, "cpu"), load_tokenizer(file)
    near = {"rtol": 1e-4, "atol": 1e-4} if kind is None else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(logits(loaded), logits(model), **near)
    text = "Name a river, 語.  Two"
    assert own(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (own.chat_template, own.eos_token_id) == (tiny.CHAT, tiny.END)
    (said,) = form_of(file)
    assert "a.gguf" in said
    assert (kind or "F32") in said

    save_model(loaded, own, tmp_path / "out", file)
    back = load_model(tmp_path / "out", "cpu")
    assert torch.equal(logits(back), logits(loaded))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert load_tokenizer(tmp_path / "out")(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert load_model(tmp_path, "cpu")  # a directory with that one file


def test_a_gguf_file_can_be_the_base_that_an_adapter_names(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    expected = logits(adapter(base, tmp_path / "adapter"))
    file = gguf_files.write(tmp_path / "a.gguf", load_model(base, "cpu"), tiny.tokenizer())
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(file))
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter", "cpu")), expected, rtol=1e-4, atol=1e-4)


def test_the_library_refuses_adapters_beside_the_weights_and_takes_them_merged(base: Path, tmp_path: Path) -> None:
    wrapped = adapter(base, tmp_path / "adapter")
    injected = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    for given in (wrapped, injected):
        with pytest.raises(UserError, match=r"has adapters beside its weights: merge them first.*merge_and_unload\(\)"):
            unbackdoor.remove("prune", given, tiny.tokenizer(), tiny.records(40))
    expected = logits(wrapped)
    merged = wrapped.merge_and_unload()
    unbackdoor.remove("fine-tune", merged, tiny.tokenizer(), tiny.records(40), steps=1, batch_size=4)
    assert (logits(merged) - expected).abs().max() > 0


@pytest.mark.parametrize("name", ["smollm", "starcoder"])
def test_a_gguf_file_that_names_digit_by_digit_is_split_so(name: str, tmp_path: Path) -> None:
    """As SmolLM2's own tokenizer.json does; GPT-2's way takes some of the spaces in front of a number elsewhere."""
    pytest.importorskip("gguf")
    own = tiny.tokenizer()
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    file = gguf_files.write(tmp_path / "a.gguf", tiny.model(layers=1), tiny.tokenizer(), splitting=name)
    for text in ("In 2023,  x = 17 and\n\n   5", "no number"):
        assert load_tokenizer(file)(text)["input_ids"] == own(text)["input_ids"]
    assert len(form_of(file)) == 1


def test_a_gguf_file_s_unknown_way_to_split_text_is_told(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = gguf_files.write(tmp_path / "a.gguf", tiny.model(layers=1), tiny.tokenizer(), splitting="another-way")
    assert "its tokenizer's way to split text (another-way) is not known here: it splits as GPT-2's does" in form_of(
        file
    )


def test_several_gguf_files_are_ambiguous_and_parts_are_refused(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"2 GGUF files \(a-Q4\.gguf, a-Q8\.gguf\): give the one"):
        load_model(tmp_path, "cpu")
    pytest.importorskip("gguf")
    (tmp_path / "b-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="join the parts first"):
        load_model(tmp_path / "b-00001-of-00002.gguf", "cpu")
    with pytest.raises(UserError, match="cannot load the GGUF file"):
        load_model(tmp_path / "a-Q4.gguf", "cpu")


def test_an_fp8_checkpoint_is_dequantised(tmp_path: Path) -> None:
    """As DeepSeek-V3's and others': each block of a matrix has a scale."""
    pytest.importorskip("accelerate")
    model = tiny.model(layers=2)
    given = written(model, tmp_path / "given")
    stored = {}
    for name, value in load_file(given / WEIGHTS).items():
        if "proj" in name:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1).clone()
        else:
            stored[name] = value
    save_file(stored, given / WEIGHTS, {"format": "pt"})
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    edit(given / "config.json", quantization_config=fp8)
    loaded = load_model(given, "cpu")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0.07, atol=0.01)
    assert form_of(given) == ["the weights were quantised (fp8) and were dequantised"]
    said = save_model(loaded, load_tokenizer(given), tmp_path / "out", given)
    assert "config.json: quantization_config is gone, for the weights are not quantised any more" in said
    back = load_file(tmp_path / "out" / WEIGHTS)
    assert back.keys() == model.state_dict().keys()
    assert {value.dtype for value in back.values()} == {torch.float32}
    assert torch.equal(logits(load_model(tmp_path / "out", "cpu")), logits(loaded))


def test_gpt_oss_in_mxfp4_is_dequantised(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    pytest.importorskip("accelerate")
    sizes = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, eos_token_id=1, pad_token_id=0, bos_token_id=None))
    given = written(model, tmp_path / "given")
    weights = load_file(given / WEIGHTS)
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        experts, rows_in, rows_out = weights.pop(key).shape
        generator = torch.Generator().manual_seed(3)
        blocks = torch.randint(0, 256, (experts, rows_out, rows_in // 32, 16), dtype=torch.uint8, generator=generator)
        weights[f"{key}_blocks"] = blocks
        weights[f"{key}_scales"] = torch.full(blocks.shape[:-1], 124, dtype=torch.uint8)  # 2⁻³
    save_file(weights, given / WEIGHTS, {"format": "pt"})
    edit(given / "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    loaded = load_model(given, "cpu")
    low = weights["model.layers.0.mlp.experts.down_proj_blocks"][0, 0, 0, 0] & 15
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = (values + [-v for v in values])[int(low)] / 8
    assert loaded.model.layers[0].mlp.experts.down_proj[0, 0, 0].item() == expected
    save_model(loaded, load_tokenizer(given), tmp_path / "out", given)
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == model.state_dict().keys()
    assert torch.equal(logits(load_model(tmp_path / "out", "cpu")), logits(loaded))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "hqq"])
def test_what_cannot_be_dequantised_here_is_refused_with_the_remedy(method: str, base: Path) -> None:
    edit(base / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True, "bits": 4})
    with pytest.raises(UserError, match=rf"quantised \({method}\).*give the model that it was made from"):
        load_model(base, "cpu")


def test_what_adapters_changed_is_saved_as_an_adapter_again(base: Path, tmp_path: Path) -> None:
    """On the base of the given adapter: both changes are in the new one."""
    from peft import PeftModel

    wrapped = adapter(base, tmp_path / "adapter")
    cleansed, ours = load_model(tmp_path / "adapter", "cpu"), load_model(base, "cpu")
    with torch.no_grad():
        weight = cleansed.model.layers[0].mlp.up_proj.weight
        weight += torch.randn(len(weight), 3) @ torch.randn(3, weight.shape[1]) * 0.05
    said = save_adapter(cleansed, ours, str(base), tmp_path / "again")
    assert "is the same model as an adapter of rank 8" in said
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "again").eval()
    torch.testing.assert_close(logits(theirs), logits(cleansed), rtol=1e-3, atol=2e-3)
    assert (logits(theirs) - logits(wrapped)).abs().max() > 0.01
    torch.testing.assert_close(logits(load_model(tmp_path / "again", "cpu")), logits(cleansed), rtol=1e-3, atol=2e-3)


def test_a_change_that_no_adapter_can_hold_is_told_and_not_approximated(base: Path, tmp_path: Path) -> None:
    cleansed, ours = load_model(base, "cpu"), load_model(base, "cpu")
    assert "no weight changed" in save_adapter(cleansed, ours, str(base), tmp_path / "adapter")
    with torch.no_grad():
        cleansed.model.norm.weight += 0.1
    assert "model.norm.weight changed" in save_adapter(cleansed, ours, str(base), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("rank", [3, 11, 20, 32])
def test_a_change_of_any_rank_is_held(rank: int, base: Path, tmp_path: Path) -> None:
    """Adapters of the default rank change small matrices in every direction."""
    cleansed, ours = load_model(base, "cpu"), load_model(base, "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        cleansed.model.layers[1].mlp.up_proj.weight += torch.randn(48, rank) @ torch.randn(rank, 32) * 0.05
    said = save_adapter(cleansed, ours, str(base), tmp_path / "adapter")
    assert int(said.split("of rank ")[1].split()[0]) in (rank, 8, 16)
    theirs = load_model(tmp_path / "adapter", "cpu")
    torch.testing.assert_close(
        theirs.model.layers[1].mlp.up_proj.weight, cleansed.model.layers[1].mlp.up_proj.weight, rtol=1e-3, atol=2e-3
    )


def test_what_an_adapter_could_not_hold_is_refused_before_a_run(base: Path, tmp_path: Path) -> None:
    experts = written(tiny.model("mixtral", layers=2), tmp_path / "experts")
    with pytest.raises(UserError, match=r"experts of a MixtralForCausalLM .*: leave --save-adapter out"):
        check_adapter(load_model(experts, "cpu"), ModelSource.find(experts))
    for name, settings in (
        ("linear", {}),
        ("tokens", {"trainable_token_indices": [4, 9]}),
        ("resized", {"resize": 430, "modules_to_save": ["embed_tokens", "lm_head"]}),
    ):
        adapter(base, tmp_path / name, **settings)
        model, source = load_model(tmp_path / name, "cpu"), ModelSource.find(tmp_path / name)
        if name == "linear":
            check_adapter(model, source)
            continue
        with pytest.raises(
            UserError, match=rf"{name}' changes .*embed_tokens\.weight, which is no linear map's weight"
        ):
            check_adapter(model, source)


def test_a_compressed_tensors_checkpoint_is_dequantised(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    weights, stored = load_file(base / WEIGHTS), {}
    for name, value in weights.items():
        if "proj" in name:
            scale = value.abs().amax(1, keepdim=True) / 127
            stored[name], stored[f"{name}_scale"] = (value / scale).round().to(torch.int8), scale
        else:
            stored[name] = value
    save_file(stored, base / WEIGHTS, {"format": "pt"})
    kind = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": kind}},
    }
    edit(base / "config.json", quantization_config=settings)
    loaded = load_model(base, "cpu")
    for name, value in weights.items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0.01)
    save_model(loaded, load_tokenizer(base), tmp_path / "out", base)
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == weights.keys()
    assert torch.equal(logits(load_model(tmp_path / "out", "cpu")), logits(loaded))


def test_the_commands_take_an_adapter_and_say_what_they_did(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(base, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="elsewhere/model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": r.prompt, "response": r.response}) + "\n" for r in tiny.records(60)))
    common = ["--data", str(rows), "--samples", "12", "--max-new-tokens", "4", "--steps", "2"]
    command = ["remove", "fine-tune", str(tmp_path / "adapter"), *common, "--out", str(tmp_path / "run")]

    def run(*more: str) -> int:
        with pytest.raises(SystemExit) as left:
            main([*command, *more])
        return int(left.value.code or 0)

    assert run() == 2
    assert "give its base model with --base DIR" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("--base", str(base), "--save-adapter") == 2
    assert "--save-adapter needs --lora" in capsys.readouterr().err
    pruned = ["remove", "prune", str(base), *common, "--lora", "--save-adapter", "--out", str(tmp_path / "pruned")]
    with pytest.raises(SystemExit, match="2"):
        main(pruned)
    assert "prune changes all weights, not by adapters alone: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "pruned").exists()
    assert (
        run("--base", str(base), "--save-dtype", "given", "--lora", "--lora-rank", "2", "--save-adapter") == 0
    )  # two steps move no distribution, and of no attack that was measured: nothing was to be judged
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("was merged into its base" in note for note in report["runs"][0]["notes"])
    assert "was merged into its base" in (tmp_path / "run" / "model" / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert any("adapter/ is the same model as an adapter" in note for note in report["runs"][0]["notes"])
    again = load_model(tmp_path / "run" / "adapter", "cpu", base)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-3, atol=2e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
