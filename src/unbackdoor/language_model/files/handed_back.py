"""What of the given files acts on text and is handed back with the cleansed model, a sentence each.

The weights are cleansed; a template, a normaliser or a decoder is not. What of them does more than such files do is
told before the run, in the report and in the model card, and can be replaced: `--template-from`, `--tokenizer-from`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jinja2 import TemplateError

from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.gguf_files import template_in, words_that_are_special
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.side_files import TEMPLATE_FOLDER, has_tokenizer, tokenizer_files
from unbackdoor.language_model.template_conditions import examined
from unbackdoor.language_model.tokenizer_steps import unusual_steps
from unbackdoor.language_model.tokenizer_words import in_configs
from unbackdoor.report_schema import HandedBack

MOST_TEXTS = 3
REPLACE_TEMPLATE = "--template-from replaces it"
REPLACE_TOKENIZER = "--tokenizer-from replaces it"


def handed_back(given: ModelSource) -> HandedBack:
    """Look at the tokenizer and at every template of a model.

    Raises:
        UserError: a file that may not be opened.
    """
    directory = tokenizer_directory(given)
    said, texts = list[str](), list[str]()
    for name, text in _every_template(given, directory):
        try:
            found = examined(text)
        except (TemplateError, RecursionError, ValueError) as error:
            reason = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
            said.append(f"{name} cannot be read as a template ({reason[:80]}): {REPLACE_TEMPLATE}")
            continue
        if found.acts:
            listed = "; ".join(found.acts)
            said.append(f"{name} does more with a dialogue than write it: {listed}: {REPLACE_TEMPLATE}")
        if found.writes:
            texts.append(f"{name} writes texts of its own: {'; '.join(found.writes[:MOST_TEXTS])}")
    if directory is None:
        words = words_that_are_special(given.whole) if given.whole.form == "gguf" else []
        return HandedBack(acts=(*said, *(f"{each}: {REPLACE_TOKENIZER}" for each in words)), writes=tuple(texts))
    file = directory / "tokenizer.json"
    if file.is_file():
        said += [f"{step}: {REPLACE_TOKENIZER}" for step in unusual_steps(file, directory)]
    said += [f"{words}: {REPLACE_TOKENIZER}" for words in in_configs(directory)]
    return HandedBack(acts=tuple(said), writes=tuple(texts))


def tokenizer_directory(given: ModelSource | None) -> Path | None:
    """Where a model's tokenizer files lie: an adapter's own directory where it has any, else its base's."""
    for source in (given, given.whole) if given is not None else ():
        if source.form != "gguf" and has_tokenizer(source.directory):
            return source.directory
    return None


def _every_template(given: ModelSource, directory: Path | None) -> Iterator[tuple[str, str]]:
    """Those of the tokenizer's directory, or of the GGUF file; and of an adapter's base that of its processor."""
    if directory is not None:
        yield from _templates(directory)
    elif given.whole.form == "gguf" and (text := template_in(given.whole)):
        yield "the template of the GGUF file", text
    if given.base is not None and given.base.directory != directory and given.base.form == "whole":
        yield from _in_configs(given.base.directory, ("processor_config.json",))


def _templates(directory: Path) -> Iterator[tuple[str, str]]:
    """Every template of a directory: a name for it, and its text."""
    for file in tokenizer_files(directory):
        if file.suffix == ".jinja":
            folder = f"{TEMPLATE_FOLDER}/" if file.parent.name == TEMPLATE_FOLDER else ""
            yield f"the template {folder}{file.name}", file.read_text(encoding="utf-8", errors="replace")
    yield from _in_configs(directory, ("tokenizer_config.json", "chat_template.json", "processor_config.json"))


def _in_configs(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        path = directory / name
        found = read_json(path, directory).get("chat_template") if path.is_file() else None
        several = found if isinstance(found, list) else [found]
        for one in several:
            text = one.get("template") if isinstance(one, Mapping) else one
            called = f" '{one.get('name')}'" if isinstance(one, Mapping) else ""
            if isinstance(text, str):
                yield f"the template{called[:40]} of {name}", text
