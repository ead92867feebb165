"""Hostile model directories: each a small mutation of one good one, made by a function of a line or a few."""

# ruff: noqa: E501 - a case a line

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

EITHER = None
"""Where loaders may refuse or read it: what loads gives the same ids and logits as the good one."""
RIGHT = ""
"""What is expected where the directory loads, and gives the same ids and logits as the good one."""


@dataclass(frozen=True)
class Hostile:
    """A directory that an attacker could hand over.

    Args:
        name: of the case.
        spoil: makes it of a copy of the good directory; a folder beside the copy is the attacker's, too.
        expected: `RIGHT`, or `EITHER`, or what the one line of the refusal says (a regular expression).
        where: which loader says so; the other one is tried all the same.
    """

    name: str
    spoil: Callable[[Path], object]
    expected: str | None = RIGHT
    where: str = "model"


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


CODE = """import os
os.mkdir(os.environ["UNBACKDOOR_TEST_MARK"])
class Evil: pass
EvilConfig = EvilModel = EvilTokenizer = Evil
"""


def mark(path: Path) -> Path:
    """What is there afterwards if anything of a hostile directory was run."""
    return path.parent / "ran"


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    """Change fields of a JSON file."""

    def spoil(path: Path) -> None:
        content = json.loads((path / file).read_text()) if (path / file).is_file() else {}
        (path / file).write_text(json.dumps({**content, **changes}))

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    return edit("config.json", **changes)


def tokenizer_config(**changes: Any) -> Callable[[Path], None]:
    return edit("tokenizer_config.json", **changes)


def text(file: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        (path / file).parent.mkdir(exist_ok=True, parents=True)
        (path / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def bomb(file: str) -> Callable[[Path], None]:
    """A pickle that leaves a mark."""
    return lambda path: text(file, pickle.dumps(Bomb(mark(path))))(path)


def torch_bomb(file: str) -> Callable[[Path], None]:
    """A checkpoint of torch's that leaves a mark when it is unpickled."""

    def spoil(path: Path) -> None:
        (path / file).parent.mkdir(exist_ok=True, parents=True)
        torch.save({"weight": Bomb(mark(path))}, path / file)

    return spoil


def link(file: str, target: str) -> Callable[[Path], None]:
    """The file is a symbolic link; what was there under this name lies at `../outside/NAME`."""

    def spoil(path: Path) -> None:
        outside = path.parent / "outside"
        outside.mkdir(exist_ok=True)
        if (path / file).exists():
            (path / file).rename(outside / Path(file).name)
        (path / file).parent.mkdir(exist_ok=True, parents=True)
        (path / file).symlink_to(target)

    return spoil


def gone(file: str) -> Callable[[Path], None]:
    return lambda path: (path / file).unlink()


def several(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for step in steps:
            step(path)

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Change the tensors of the weights' file."""

    def spoil(path: Path) -> None:
        found = {name: value.clone() for name, value in load_file(path / WEIGHTS).items()}
        save_file(dict(change(found)), path / WEIGHTS, {"format": "pt"})

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the header of the weights' file, and leave its data."""

    def spoil(path: Path) -> None:
        raw = (path / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        content = json.loads(raw[8 : 8 + length])
        changed = change(content)
        new = changed if isinstance(changed, bytes) else json.dumps(content).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return spoil


def sparse(file: str, size: int, begin: bytes = b"") -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with (path / file).open("wb") as opened:
            opened.write(begin)
            opened.truncate(size)

    return spoil


def index(shards: Callable[[list[str]], Mapping[str, Any]] | None = None, **more: Any) -> Callable[[Path], None]:
    """The weights lie in `model-00001-of-00001.safetensors`, and an index names it, or what is given."""

    def spoil(path: Path) -> None:
        names = list(load_file(path / WEIGHTS))
        (path / WEIGHTS).rename(path / SHARD)
        named = shards(names) if shards else dict.fromkeys(names, SHARD)
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named, **more}))

    return spoil


SHARD = "model-00001-of-00001.safetensors"


def tokenizer_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = json.loads((path / "tokenizer.json").read_text())
        change(content)
        (path / "tokenizer.json").write_text(json.dumps(content))

    return spoil


def replaces(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def configs() -> Iterator[Hostile]:
    """What a config.json can say."""
    code = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    yield Hostile("auto_map", several(text("evil.py", CODE), config(auto_map=code)))
    yield Hostile("auto_map to a hub", config(auto_map={key: f"owner/name--{value}" for key, value in code.items()}))
    for odd in ("evil.Evil", ["evil.Evil"], {"AutoConfig": None}, {"AutoConfig": 5}, 5):
        yield Hostile(f"auto_map {odd}", config(auto_map=odd))
    yield Hostile(
        "a type of its own code",
        several(text("evil.py", CODE), config(auto_map=code, model_type="evil", architectures=["Evil"])),
        "model type `evil`",
    )
    yield Hostile("trust_remote_code in the config", config(trust_remote_code=True))
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        for value in ("owner/name", "owner/name:forward", "flash_attention_2", "evil", {"": "owner/name"}, 5):
            yield Hostile(f"{name} {value}", config(**{name: value}))
    for name in ("experts_implementation", "_experts_implementation", "_experts_implementation_internal"):
        yield Hostile(name, config(**{name: "owner/name"}))
    yield Hostile("kernels", config(use_kernels=True, kernel_config={"RMSNorm": "owner/name:RMSNorm"}))
    yield Hostile("fusion", config(fusion_config={"evil": True}))
    yield Hostile("distributed", config(distributed_config={"tp_plan": "auto"}, tp_plan="auto", device_map="auto"))
    yield Hostile("plans", config(base_model_tp_plan={"*": "evil"}, base_model_pp_plan={"x": [["y"]]}))
    for file in ("evil.bin", "evil.safetensors", "../outside/model.safetensors", "/etc/passwd", INDEX, "x" * 5000):
        yield Hostile(
            f"transformers_weights {file[:30]}",
            several(bomb("evil.bin"), config(transformers_weights=file)),
            "names its own weights file: remove its transformers_weights",
        )
    yield Hostile(
        "transformers_weights is the adapter's pickle",
        several(torch_bomb("adapter_model.bin"), config(transformers_weights="adapter_model.bin")),
        "names its own weights file",
    )
    yield Hostile(
        "other config files",
        several(text("config.4.0.0.json", "{}"), config(configuration_files=["config.4.0.0.json"])),
        "remove its configuration_files",
    )
    yield Hostile("extra files", several(bomb("evil.bin"), config(extra_files=["evil.bin"], gguf_file="evil.gguf")))
    yield Hostile("another name", config(_name_or_path="owner/name", name_or_path="owner/name", _commit_hash="x"))
    yield Hostile("pipelines", config(custom_pipelines={"x": {"impl": "evil.Evil", "pt": ["AutoModel"]}}))
    yield Hostile(
        "a backbone to fetch", config(use_pretrained_backbone=True, backbone="resnet50", use_timm_backbone=True)
    )
    yield Hostile("return_dict false", config(return_dict=False, use_return_dict=False))
    yield Hostile("everything is returned", config(output_attentions=True, output_hidden_states=True))
    yield Hostile("torchscript and pruned heads", config(torchscript=True, pruned_heads={"0": [0, 1]}))
    for name in ("get_text_config", "to_dict", "from_pretrained", "attribute_map", "sub_configs", "__class__"):
        yield Hostile(f"in the place of a method: {name}", config(**{name: "evil"}))
    for method in ("gptq", "awq", "bitsandbytes", "quanto", "aqlm", "hqq", "torchao", "eetq", "evil", "x" * 500, 5):
        yield Hostile(
            f"quantised by {str(method)[:9]}", config(quantization_config={"quant_method": method}), "are quantised"
        )
    yield Hostile("quantised by a text", config(quantization_config="owner/name"), "cannot load the model|quantised")
    for kind in ("load", "Tensor", "evil", "float8_e4m3fn", 5, ["float32"]):
        yield Hostile(f"dtype {kind}", config(torch_dtype=kind, dtype=kind), EITHER)
    for ends in (10**12, -1, -(10**30), "5", [1, "x"], [[1]], {"a": 1}, 1.5, True, [], list(range(2000))):
        yield Hostile(f"end {str(ends)[:12]}", config(eos_token_id=ends), EITHER)
        yield Hostile(f"end of generation {str(ends)[:12]}", edit("generation_config.json", eos_token_id=ends))
    for pad in (10**12, -5, "x", 1.5, [0]):
        yield Hostile(f"padding {pad}", config(pad_token_id=pad), EITHER)
    yield Hostile(
        "settings of generation",
        edit("generation_config.json", forced_bos_token_id=3, bad_words_ids=[[5]], max_length=2),
    )
    yield Hostile("generation is no object", text("generation_config.json", "[1]"), "is not a JSON object")
    yield Hostile("generation is no JSON", text("generation_config.json", "{"), "is not JSON")
    yield Hostile("generation code", several(text("custom_generate/generate.py", CODE), config(custom_generate="x")))
    for kind in (5, None, "", "bert", "t5", "clip", "timm_wrapper", "encoder-decoder", "rag", "../llama", "x" * 9000):
        yield Hostile(f"type {str(kind)[:16]}", config(model_type=kind), ".")
    for named in ("LlamaForSequenceClassification", "LlamaModel", "Qwen2ForCausalLM", "RagTokenForGeneration"):
        yield Hostile(f"architecture {named}", config(architectures=[named]), "no head|do not belong together")
    for named in ("os.system", "pipeline", "PreTrainedModel", "", 5):
        yield Hostile(f"architecture {named}", config(architectures=[named]), EITHER)
    yield Hostile("architectures is a number", config(architectures=5), "cannot load the model")
    yield Hostile("rope evil", config(rope_parameters={"rope_type": "evil", "rope_theta": 1.0}), "rope_type")


def sizes() -> Iterator[Hostile]:
    """A billion layers, and other numbers."""
    for name, value in {
        "num_hidden_layers": 10**9,
        "hidden_size": 10**9,
        "vocab_size": 10**12,
        "intermediate_size": 10**15,
        "num_attention_heads": 10**9,
        "num_key_value_heads": 10**12,
        "head_dim": 10**9,
        "max_position_embeddings": 10**15,
        "num_labels": 10**9,
    }.items():
        yield Hostile(f"{name} {value}", config(**{name: value}), r"give a config\.json that fits (the weights|it)")
        yield Hostile(f"{name} 40 digits", config(**{name: 10**40}), r"give a config\.json that fits|is not JSON")
        for odd in (-1, 0, 1.5, "8", None, True, [8], {"a": 8}):
            yield Hostile(f"{name} {odd}", config(**{name: odd}), EITHER)
    yield Hostile("five thousand layers", config(num_hidden_layers=5000), "fits the weights")
    yield Hostile("two hundred layers", config(num_hidden_layers=200), "fits")
    yield Hostile("a wide model", config(hidden_size=2**20, intermediate_size=2**22), "fits")
    yield Hostile("a large vocabulary", config(vocab_size=2**26), "fits")
    yield Hostile("one layer of two", config(num_hidden_layers=1), r"would be lost, such as model\.layers\.1\.")
    yield Hostile("none of two", config(num_hidden_layers=0), "would be lost, such as model.layers.0")
    yield Hostile(
        "a layer that is said to look ahead",
        config(num_hidden_layers=1, num_nextn_predict_layers=1),
        r"would be lost, such as model\.layers\.1\.",
    )
    yield Hostile("many look ahead", config(num_hidden_layers=1, num_nextn_predict_layers=10**9), "fits the weights")
    yield Hostile("layer types without end", config(layer_types=["full_attention"] * 20_000), ".")
    yield Hostile("inner config", config(text_config={"num_hidden_layers": 10**9}), "fits the weights")


def json_files() -> Iterator[Hostile]:
    """What is no JSON, too much of it, or too deep."""
    for file in ("config.json", "tokenizer_config.json"):
        where = "model" if file == "config.json" else "tokenizer"
        for name, content in {
            "empty": "",
            "cut": '{"a": ',
            "a list": "[]",
            "not UTF-8": b'{"a": "\xff\xfe"}',
            "binary": bytes(range(256)) * 10,
            "deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
            "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
            "a long number": '{"hidden_size": ' + "9" * 100_000 + "}",
        }.items():
            yield Hostile(f"{file} {name}", text(file, content), "is not (a )?JSON", where)
        yield Hostile(f"{file} of 20 MB", sparse(file, 20 * 2**20), "no file of this name needs more", where)
        yield Hostile(f"{file} is a folder", several(gone(file), lambda p, f=file: (p / f).mkdir()), ".", where)
        yield Hostile(
            f"{file} is a pipe",
            several(gone(file), lambda p, f=file: os.mkfifo(p / f)),
            "no regular file|has no config.json",
            where,
        )
        yield Hostile(f"{file} is a device", link(file, "/dev/zero"), "no regular file|has no config.json", where)
        yield Hostile(f"{file} leads out", link(file, f"../outside/{file}"), "a link that leads out", where)
        yield Hostile(f"{file} leads to a secret", link(file, "/etc/passwd"), "a link that leads out", where)
        yield Hostile(f"{file} leads to itself", link(file, file), EITHER, where)
    yield Hostile("no config", gone("config.json"), "has no config.json")


def weights() -> Iterator[Hostile]:
    """The weights' files, their headers, and their index."""
    yield Hostile("an index", index())
    for shard in (
        "evil.bin",
        "../outside/x.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/model.safetensors",
        5,
        None,
        ["x"],
    ):
        yield Hostile(
            f"a shard {shard}",
            several(bomb("evil.bin"), index(lambda names, s=shard: dict.fromkeys(names, s))),
            "only safetensors files|is not an index|which its index names|holds",
        )
    yield Hostile("a shard that is gone", index(lambda names: dict.fromkeys(names, "gone.safetensors")), "lacks|holds")
    yield Hostile(
        "a shard that leads out", several(index(), link(SHARD, f"../outside/{SHARD}")), "a link that leads out"
    )
    yield Hostile("weights that lead out", link(WEIGHTS, f"../outside/{WEIGHTS}"), "a link that leads out")
    yield Hostile("weights that are a device", link(WEIGHTS, "/dev/zero"), "no regular file")
    yield Hostile(
        "an index that leads out", several(index(), link(INDEX, f"../outside/{INDEX}")), "a link that leads out"
    )
    yield Hostile(
        "an index with a tensor in another shard", index(lambda names: {**dict.fromkeys(names, SHARD), "x": SHARD})
    )
    yield Hostile("an index that is a list", several(index(), text(INDEX, "[]")), "is not an index of weights")
    yield Hostile("a deep index", several(index(), text(INDEX, '{"weight_map":' * 10**5)), "is not an index of weights")
    yield Hostile(
        "an index of many names",
        index(lambda names: {**{f"t{i}": SHARD for i in range(10**5)}, **dict.fromkeys(names, SHARD)}),
    )
    yield Hostile("an index of 100 MB", several(index(), sparse(INDEX, 100 * 2**20)), "no file of this name needs more")
    yield Hostile(
        "an index of another name",
        several(torch_bomb("evil.bin"), text("pytorch_model.bin.index.json", '{"weight_map": {"x": "evil.bin"}}')),
    )
    yield Hostile(
        "an index of a variant", text("model.safetensors.index.fp16.json", '{"weight_map": {"x": "/etc/passwd"}}')
    )
    yield Hostile(
        "a second file", lambda path: save_file({"x": torch.ones(1)}, path / "other.safetensors"), "which are meant"
    )
    for file in ("pytorch_model.bin", "model.pt", "spk_dict.pt", "training_args.bin", "optimizer.pt", "a.distcp"):
        yield Hostile(f"a pickle {file}", torch_bomb(file))
        yield Hostile(f"a plain pickle {file}", bomb(file))
    yield Hostile("only a pickle", several(gone(WEIGHTS), torch_bomb("pytorch_model.bin")), "only pickle weights")
    yield Hostile(
        "only a pickle by an index",
        several(gone(WEIGHTS), torch_bomb("a.bin"), text("pytorch_model.bin.index.json", '{"weight_map": {}}')),
        "only pickle weights",
    )
    yield Hostile("a pickle called safetensors", torch_bomb(WEIGHTS), "cannot load the model")
    yield Hostile(
        "a distributed checkpoint",
        several(gone(WEIGHTS), bomb(".metadata"), bomb("__0_0.distcp")),
        "no \\*.safetensors",
    )
    yield Hostile(
        "an adapter beside", edit("adapter_config.json", base_model_name_or_path="owner/name"), "and an adapter"
    )
    for size in (0, 4, 8, 100):
        yield Hostile(f"cut to {size}", lambda p, n=size: os.truncate(p / WEIGHTS, n), "cannot load the model")
    yield Hostile(
        "cut in the data", lambda p: os.truncate(p / WEIGHTS, (p / WEIGHTS).stat().st_size - 5), "cannot load"
    )
    yield Hostile(
        "data behind the end", lambda p: os.truncate(p / WEIGHTS, (p / WEIGHTS).stat().st_size + 5), "cannot load"
    )
    yield Hostile("a terabyte of holes", lambda p: os.truncate(p / WEIGHTS, 2**40), "give the complete file")
    whole = struct.pack("<Q", 2**40 - 8)
    yield Hostile("a header of a terabyte", sparse(WEIGHTS, 2**40, whole), "the header of model.safetensors has")
    yield Hostile("a header longer than the file", sparse(WEIGHTS, 100, struct.pack("<Q", 2**63)), "cut off")
    yield Hostile("a header of 300 MB", sparse(WEIGHTS, 2**29, struct.pack("<Q", 300 * 2**20)), "the header of")
    yield Hostile("a header that is a list", header(lambda _: b"[]"), "cannot load the model")
    yield Hostile("a deep header", header(lambda _: b'{"a":' * 100_000), "cannot load the model")
    for name, value in {
        "negative": {"data_offsets": [-4, 0]},
        "beyond": {"data_offsets": [0, 2**50]},
        "backwards": {"data_offsets": [100, 0]},
        "another shape": {"shape": [2**40, 2**40]},
        "overflow": {"shape": [2**63, 2**63]},
        "another dtype": {"dtype": "F64"},
        "no dtype": {"dtype": "EVIL"},
        "shape of text": {"shape": ["x"]},
    }.items():
        yield Hostile(
            f"a header that lies: {name}", header(lambda h, v=value: h["lm_head.weight"].update(v)), "cannot load"
        )
    yield Hostile("two at one place", header(_overlapping), "cannot load the model")
    first = "model.layers.0.mlp.up_proj.weight"
    yield Hostile(
        "a tensor is missing", tensors(lambda t: {n: v for n, v in t.items() if n != first}), f"such as {first}"
    )
    yield Hostile("another shape", tensors(lambda t: {**t, first: torch.zeros(3)}), f"such as {first}")
    for extra in ("evil", "model.layers.9.x", "model.layers.2.mlp.up_proj.weight", "vision.x", "lm_head.bias"):
        yield Hostile(f"one more: {extra}", tensors(lambda t, e=extra: {**t, e: torch.ones(2)}), "would be lost")
    yield Hostile(
        "a bias that is no mask", tensors(lambda t: {**t, "model.layers.0.self_attn.bias": torch.ones(4)}), "lost"
    )


def _overlapping(content: dict[str, Any]) -> None:
    names = [name for name in content if name != "__metadata__" and name.endswith("up_proj.weight")]
    content[names[0]]["data_offsets"] = content[names[1]]["data_offsets"]


def tokenizers() -> Iterator[Hostile]:
    """The tokenizer's files."""
    where = "tokenizer"
    code = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    yield Hostile("tokenizer auto_map", several(text("evil.py", CODE), tokenizer_config(auto_map=code)))
    yield Hostile("tokenizer auto_map as a list", tokenizer_config(auto_map=["evil.EvilTokenizer", None]))
    yield Hostile(
        "a class of its own code",
        several(text("evil.py", CODE), tokenizer_config(auto_map=code, tokenizer_class="EvilTokenizer")),
        "is code of the directory's own, which never runs",
        where,
    )
    for name in (
        "tokenizer_file",
        "vocab_file",
        "added_tokens_file",
        "special_tokens_map_file",
        "merges_file",
        "spm_file",
    ):
        for target in ("/etc/passwd", "../outside/tokenizer.json", "owner/name"):
            yield Hostile(f"{name} {target}", tokenizer_config(**{name: target}))
    yield Hostile(
        "a tokenizer for another version",
        several(text("tokenizer.1.0.json", "{}"), tokenizer_config(fast_tokenizer_files=["tokenizer.1.0.json"])),
    )
    yield Hostile("arguments by place", tokenizer_config(init_inputs=["owner/name", 5]))
    yield Hostile("a tokenizer as an argument", tokenizer_config(tokenizer_object=5, backend="x", gguf_file="x.gguf"))
    yield Hostile("vocabulary as an argument", tokenizer_config(vocab={"a": 0}, merges=[]))
    yield Hostile("sentencepiece arguments", tokenizer_config(sp_model_kwargs={"model_file": "/etc/passwd"}))
    yield Hostile(
        "another name of the tokenizer",
        tokenizer_config(name_or_path="owner/name", is_local=False, local_files_only=False),
    )
    for length in ("512", "evil", -1, 0, None, True, [1], 1e400, 10**30):
        yield Hostile(f"model_max_length {length}", tokenizer_config(model_max_length=length))
    for side in ("middle", 5, None):
        yield Hostile(f"padding_side {side}", tokenizer_config(padding_side=side, truncation_side=side))
    yield Hostile("an end that is no text", tokenizer_config(eos_token=5), ".", where)
    yield Hostile(
        "a token with more fields",
        tokenizer_config(eos_token={"__type": "AddedToken", "content": "<|end|>", "evil\x1b[2J": 1}),
    )
    for name, content in {
        "empty": "",
        "a list": "[]",
        "no model": "{}",
        "an unknown model": '{"model": {"type": "Evil"}}',
        "binary": b"\0\xff" * 99,
        "deep": "[" * 100_000,
    }.items():
        yield Hostile(f"tokenizer.json {name}", text("tokenizer.json", content), "tokenizer", where)
    yield Hostile(
        "tokenizer.json of 300 MB", sparse("tokenizer.json", 300 * 2**20), "no file of this name needs", where
    )
    yield Hostile("tokenizer.json leads out", link("tokenizer.json", "../outside/tokenizer.json"), "leads out", where)
    yield Hostile("tokenizer.json is gone", gone("tokenizer.json"), "tokenizer", where)
    for file in (
        "chat_template.jinja",
        "additional_chat_templates/x.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        yield Hostile(f"{file} leads to a secret", link(file, "/etc/passwd"), "leads out", where)
    yield Hostile("a template of 2 MB", text("chat_template.jinja", "x" * 2**21), "no file of this name needs", where)
    yield Hostile(
        "a template that is a pipe",
        several(gone("chat_template.jinja"), lambda p: os.mkfifo(p / "chat_template.jinja")),
        "no regular file",
        where,
    )
    yield Hostile("a sentencepiece model beside", text("tokenizer.model", b"\xff" * 100))
    yield Hostile(
        "a sentencepiece model alone",
        several(gone("tokenizer.json"), text("tokenizer.model", b"\xff" * 100)),
        ".",
        where,
    )
    yield Hostile("a tiktoken file beside", text("tiktoken.model", "eA== 0\n"))
    yield Hostile("tekken beside", text("tekken.json", '{"config": {"pattern": "x"}}'))
    yield Hostile("vocabulary beside", several(text("vocab.json", "[]"), text("merges.txt", "x")))
    yield Hostile(
        "code beside", several(text("tokenization_evil.py", CODE), text("setup.py", CODE), text("__init__.py", CODE))
    )
    yield Hostile(
        "a processor of its own code", several(text("evil.py", CODE), edit("processor_config.json", auto_map=code))
    )
    yield Hostile("requirements", text("requirements.txt", "evil"))
    yield Hostile("five thousand files", lambda p: [(p / f"{i}.txt").touch() for i in range(5_001)], "holds more than")


def expanding() -> Iterator[Hostile]:
    """Tokenizers that make much of little, never end, or split at random."""
    where = "tokenizer"
    double = [replaces({"String": letter}, letter * 2) for letter in "ab" for _ in range(10)]
    for name, change in {
        "a character becomes a million": {"normalizer": replaces({"String": "a"}, "a" * 10**6)},
        "doubled twenty times": {"normalizer": {"type": "Sequence", "normalizers": double}},
        "a decoder that writes a book": {"decoder": replaces({"String": "a"}, "book " * 10**5)},
        "a pattern of a megabyte": {"normalizer": replaces({"Regex": "a|" * 10**6}, "")},
        "written before every text": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
        "ten thousand steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 10**4}},
        "a frame of a million tokens": {
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10**5,
                               "pair": [], "special_tokens": {}}
        },
    }.items():  # fmt: skip
        yield Hostile(
            name, tokenizer_json(lambda content, c=change: content.update(c)), "give (one without it|a tok)", where
        )
    deep: dict[str, Any] = {"type": "NFC"}
    for _ in range(50):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield Hostile(
        "steps within steps", tokenizer_json(lambda content: content.update(normalizer=deep)), "within each", where
    )
    yield Hostile("a token of a million", tokenizer_json(_long_token), "a token of 1,000,000 characters", where)
    yield Hostile("an added token of a million", tokenizer_json(lambda c: c["added_tokens"].append(_added("x" * 10**6))), "a token of", where)  # fmt: skip
    yield Hostile(
        "many added tokens", tokenizer_json(lambda c: c.update(added_tokens=[{}] * 300_001)), "adds 300,001", where
    )
    yield Hostile("a token with a field of its own", tokenizer_json(lambda c: c["added_tokens"][0].update({"evil\x1b[2J": 1})), "other fields", where)  # fmt: skip
    yield Hostile(
        "split at random", tokenizer_json(lambda c: c["model"].update(dropout=0.5)), "splits text at random", where
    )
    yield Hostile(
        "merges that are none", tokenizer_json(lambda c: c["model"].update(merges=[["x", "y"]])), "tokenizer", where
    )
    yield Hostile("padding to a billion", tokenizer_json(lambda c: c.update(padding={
        "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|pad|>"})), EITHER)  # fmt: skip
    yield Hostile("cut to one token", tokenizer_json(lambda c: c.update(truncation={
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0})), EITHER)  # fmt: skip


def _added(content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 419, "content": content, **plain}


def _long_token(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary["x" * 10**6] = vocabulary.pop(last)
