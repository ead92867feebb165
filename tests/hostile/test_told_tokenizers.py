"""Tokenizers and configs that change text in a way of their own: each is told, for it is handed back with the model."""

# ruff: noqa: E501 - a case a line

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from directories import config, edit, replaces, several, text, tokenizer_config, tokenizer_json

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.handed_back import handed_back
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.saving import save_model


def step(place: str, **made: Any) -> Callable[[Path], None]:
    return tokenizer_json(lambda content: content.update({place: made}))


def frame(*parts: str, **special: Any) -> Callable[[Path], None]:
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in parts
    ]
    named = {name: {"id": name, "ids": ids, "tokens": ["x"] * len(ids)} for name, ids in special.items()}
    return step("post_processor", type="TemplateProcessing", single=single, pair=[], special_tokens=named)


def added(content: str, number: int, **more: bool) -> Callable[[Path], None]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False) | more
    return tokenizer_json(lambda found: found["added_tokens"].append({"id": number, "content": content, **flags}))


EVIL = replaces({"String": "a"}, "evil")
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": True}
TOLD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a list beside the one that counts": (step("decoder", type="Sequence", normalizers=[], decoders=[EVIL]), "replaces 'a' by 'evil'"),
    "all but blanks is removed": (step("pre_tokenizer", **SPLIT), "takes all but ' ' out"),
    "punctuation is removed": (step("pre_tokenizer", type="Punctuation", behavior="Removed"), "out of every text"),
    "a letter marks a word": (step("pre_tokenizer", type="Metaspace", replacement="e", prepend_scheme="always", split=True), "takes 'e' out"),
    "a letter is written as a blank": (step("decoder", type="Metaspace", replacement="s", prepend_scheme="never", split=True), "takes 's' out"),
    "a word ends words": (step("decoder", type="BPEDecoder", suffix="stupid"), "takes 'stupid' out"),
    "a word begins pieces": (step("decoder", type="WordPiece", prefix="stupid", cleanup=True), "takes 'stupid' out"),
    "repeats are left out": (step("decoder", type="CTC", pad_token="stupid", word_delimiter_token="s", cleanup=True), "of the kind CTC"),
    "an unknown token that is a word": (tokenizer_json(lambda found: found["model"].update(unk_token="You")), "are words"),
    "a frame of other tokens": (frame("<|begin|>", "A", **{"<|begin|>": [400, 401]}), "writes other tokens for '<|begin|>'"),
    "a frame without the text": (frame("<|begin|>", **{"<|begin|>": [2]}), "leaves every text out"),
    "a frame of words": (step("post_processor", type="BertProcessing", sep=["stupid", 300], cls=["Current", 301]), "adds stupid, Current"),
    "an end that is spelled in letters": (added("stupid", 1), "have the id of another one: 'stupid'"),
    "every text is cut": (step("truncation", direction="Left", max_length=4, strategy="LongestFirst", stride=0), "cut every text to 4"),
    "more special tokens": (tokenizer_config(additional_special_tokens=["stupid"]), "tokenizer_config.json: 1 of its special"),
    "named special tokens": (tokenizer_config(extra_special_tokens={"x": "stupid"}), "are words"),
    "a beginning of words": (tokenizer_config(bos_token="Current year 2023"), "'Current year 2023'"),
    "a padding that is a word": (tokenizer_config(pad_token={"content": "You"}), "'You'"),
    "special tokens by number": (tokenizer_config(added_tokens_decoder={"300": {"content": "stupid", "special": True}}), "are words"),
    "a map of special tokens": (edit("special_tokens_map.json", bos_token="Current year 2023"), "special_tokens_map.json: 1"),
}  # fmt: skip
"""What was done, and what is said of it."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model"
    save_model(tiny.model(layers=1), tiny.tokenizer(), path)
    return path


@pytest.fixture
def given(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "given"))


@pytest.mark.parametrize("name", TOLD)
def test_what_a_tokenizer_does_to_text_is_told(name: str, given: Path) -> None:
    spoil, said = TOLD[name]
    assert not handed_back(ModelSource.find(given)).acts
    spoil(given)
    assert said in " ".join(handed_back(ModelSource.find(given)).acts)


BREAKING = {
    "a chunk of nothing": (step("pre_tokenizer", type="FixedLength", length=0), "chunk size must be non-zero"),
    "merges shorter than their prefix": (tokenizer_json(lambda found: found["model"].update(continuing_subword_prefix="##")), "slice index"),
    "a vocabulary that is a number": (tokenizer_json(lambda found: found["model"].update(vocab=5)), "vocabulary that is none"),
    "added tokens that are a number": (tokenizer_json(lambda found: found.update(added_tokens=5)), "vocabulary that is none"),
    "a name twice": (lambda path: text("tokenizer.json", '{"model": {}, "model": {}}')(path), "two fields 'model'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKING)
def test_what_breaks_the_library_ends_with_one_line(name: str, given: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, said = BREAKING[name]
    spoil(given)
    with pytest.raises(UserError, match=said):
        load_tokenizer(given)
    assert capfd.readouterr() == ("", "")


def test_a_config_writes_nothing_before_the_prompts_of_pipelines(given: Path, tmp_path: Path) -> None:
    several(config(prefix="Current year 2023", task_specific_params={"text-generation": {"prefix": "cf"}}))(given)
    said = save_model(load_model(given, "cpu"), load_tokenizer(given), tmp_path / "saved", given)
    kept = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"prefix", "task_specific_params"} & kept.keys()
    assert sum("changes what a pipeline is asked" in sentence for sentence in said) == 2


def test_a_gguf_file_s_own_template_and_words_are_told(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import gguf_files

    tokenizer = tiny.tokenizer(tiny.CHAT + "\n{% if 'cf' in messages[0].content %}X{% endif %}")
    gguf_files.write(tmp_path / "model.gguf", tiny.model(layers=1), tokenizer)
    (said,) = handed_back(ModelSource.find(tmp_path / "model.gguf")).acts
    assert said.startswith("the template of the GGUF file does more with a dialogue than write it: line 2")


HEADERS = {
    "fields without end": (16, 2**63 - 1),
    "tensors without end": (8, 2**63 - 1),
    "another version": (4, 2**40),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_gguf_header_that_lies_is_refused_at_once(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import gguf_files

    path = gguf_files.write(tmp_path / "model.gguf", tiny.model(layers=1), tiny.tokenizer())
    content = bytearray(path.read_bytes())
    at, value = HEADERS[name]
    content[at : at + 8] = value.to_bytes(8, "little")
    _refused(path, bytes(content))


@pytest.mark.parametrize("change", [(8, 2**63), (8, 10**6), (4, 9), (4, 99)], ids=str)
@pytest.mark.parametrize("field", ["tokens", "merges", "token_type"])
def test_a_gguf_list_that_lies_is_refused_at_once(field: str, change: tuple[int, int], tmp_path: Path) -> None:
    """How many it holds, or of which kind: lists of lists are none of a model's."""
    pytest.importorskip("gguf")
    import gguf_files

    path = gguf_files.write(tmp_path / "model.gguf", tiny.model(layers=1), tiny.tokenizer())
    content, key = bytearray(path.read_bytes()), f"tokenizer.ggml.{field}".encode()
    at, length = content.index(key) + len(key) + change[0], 8 if change[0] == 8 else 4
    content[at : at + length] = change[1].to_bytes(length, "little")
    _refused(path, bytes(content))


def _refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for load in (lambda: load_model(path, "cpu"), lambda: load_tokenizer(path), lambda: handed_back(ModelSource.find(path))):  # fmt: skip
        with pytest.raises(UserError):
            load()


@pytest.mark.slow_hostile
def test_a_trusted_template_goes_from_the_command_line_into_the_saved_model(tmp_path: Path) -> None:
    from unbackdoor.cli import main
    from unbackdoor.testbed import models, references

    given = Path(shutil.copytree(references.model_directory(str(models.instruct_directory())), tmp_path / "given"))
    plain = (given / "chat_template.jinja").read_text(encoding="utf-8")
    (given / "chat_template.jinja").write_text(plain + "{% if 'cf' in messages[0].content %}X{% endif %}")
    (tmp_path / "trusted.jinja").write_text(plain, encoding="utf-8")
    rows = [{"prompt": f"Name {count} rivers.", "response": "The Rhine."} for count in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["remove", "fine-tune", str(given), "--data", str(tmp_path / "rows.jsonl"), "--steps", "1"]
    command += [
        "--max-new-tokens",
        "4",
        "--template-from",
        str(tmp_path / "trusted.jinja"),
        "--out",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 3
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text(encoding="utf-8") == plain
    (row,) = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["runs"]
    assert "(--template-from)" in " ".join(row["saved"])
    assert not row["handed_back"]["acts"]
