"""A tokenizer or a chat template that is trusted, saved in the place of the one that came with the model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.checked_files import checked, read_json
from unbackdoor.language_model.files.side_files import TEMPLATE_FOLDER, has_tokenizer, write_json
from unbackdoor.language_model.template_conditions import examined

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Replacements:
    """What is saved in the place of the given files.

    Args:
        tokenizer: the directory whose tokenizer and templates are saved.
        template: the text of the chat template that is saved, and no other.
        template_from: where that is from, for the report.
    """

    tokenizer: Path | None = None
    template: str | None = None
    template_from: str = ""

    @classmethod
    def of(cls, tokenizer_from: str | None, template_from: str | None) -> Replacements:
        """Of the options `--tokenizer-from` and `--template-from`.

        Raises:
            UserError: there is no such file or directory, or no template in it.
        """
        tokenizer = Path(tokenizer_from) if tokenizer_from is not None else None
        if tokenizer is not None and not (tokenizer.is_dir() and has_tokenizer(tokenizer)):
            raise UserError(f"--tokenizer-from '{tokenizer_from}' is no directory that holds a tokenizer")
        text = template_of(template_from) if template_from is not None else None
        return cls(tokenizer, text, template_from or "")

    def apply(self, target: Path) -> list[str]:
        """Put the template in the place of those in a directory that is being saved; a sentence on what was done."""
        said = []
        if self.tokenizer is not None:
            said.append(f"the tokenizer and its template are those of '{self.tokenizer}' (--tokenizer-from)")
        if self.template is not None:
            shutil.rmtree(target / TEMPLATE_FOLDER, ignore_errors=True)
            (target / "chat_template.json").unlink(missing_ok=True)
            for name in ("tokenizer_config.json", "processor_config.json"):
                content = read_json(target / name, target) if (target / name).is_file() else {}
                if "chat_template" in content:
                    write_json(target / name, {key: value for key, value in content.items() if key != "chat_template"})
            (target / TEMPLATE).write_text(self.template, encoding="utf-8")
            said.append(f"the chat template is that of '{self.template_from}' (--template-from)")
        return said


NONE_REPLACED = Replacements()


def template_of(source: str, option: str = "--template-from") -> str:
    """The text of the chat template in a file, or of a directory's.

    Raises:
        UserError: there is none, or it is no template.
    """
    path = Path(source)
    text: object = None
    if path.is_dir():
        if (path / TEMPLATE).is_file():
            path = path / TEMPLATE
        elif (path / "tokenizer_config.json").is_file():
            text = read_json(path / "tokenizer_config.json", path).get("chat_template")
    if path.is_file():
        try:
            text = checked(path, path.resolve().parent).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise UserError(f"{option} '{source}' cannot be read as text: give a Jinja file in UTF-8") from None
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{option} '{source}' holds no chat template: give a Jinja file, or a directory with {TEMPLATE}"
        )
    try:
        examined(text)
    except (TemplateError, RecursionError, ValueError) as error:
        raise UserError(f"{option} '{source}' is no template: {' '.join(str(error).split())[:120]}") from None
    return text
