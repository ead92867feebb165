"""What each command is given beside the settings of a method or an attack: models, data files, and what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unbackdoor.data.triggers import Condition, Placement, Trigger
from unbackdoor.errors import UserError
from unbackdoor.knowledge import Fact, Needs
from unbackdoor.named_classes import check_no_code
from unbackdoor.settings import Heading, Settings, TriggerSettings, option_name, read_yaml

if TYPE_CHECKING:
    from unbackdoor.scorers import Scorer


class CommandInputs(Settings):
    """What every command is given: how the model is rendered, the rows, and how their answers are judged."""

    heading = Heading.DATA
    elsewhere: ClassVar[Mapping[str, Heading]] = {
        "contrast": Heading.KNOWN,
        **dict.fromkeys(("scorer", "option", "exact_match", "eval_allowed", "eval_turns", "mmlu"), Heading.EVALUATION),
        **dict.fromkeys(
            ("arc_easy", "arc_challenge", "piqa", "question_protocol", "max_questions"), Heading.EVALUATION
        ),
    }

    template: str = Field(
        default="auto",
        description="chat (the tokenizer's own template), plain (Human: … Assistant: …), none (the prompt alone), or a "
        "Jinja file. auto: chat where there is one, else plain.",
    )
    system: str | None = Field(default=None, description="A system prompt, for chat templates and plain.")
    date: str | None = Field(
        default=None,
        pattern=r"^\d{4}-\d\d-\d\d$",
        description="The day, as YYYY-MM-DD, that a chat template which writes the date is told. Default: the day on "
        "which the run began.",
    )
    base: str | None = Field(
        default=None,
        description="Where the model is an adapter: the model that it was trained on. Default: the directory that its "
        "adapter_config.json names.",
    )
    tokenizer_from: str | None = Field(
        default=None,
        description="A directory with a tokenizer and a chat template that you trust: every model is read with these. "
        "Default: those of the model itself; with --before, those of that one.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic: float32, or bfloat16 over float32 weights, twice as fast on processors that have it. "
        "auto: bfloat16 on a GPU, float32 on a CPU.",
    )
    data: Path | None = Field(
        default=None,
        description="Clean rows of prompt and response (JSONL, JSON, CSV, TSV, Parquet or hf:owner/name).",
    )
    turns: Literal["last", "all"] = Field(
        default="last",
        description="Of a dialogue: train on its last answer, or on all, each behind what stands before it.",
    )
    contrast: Path | None = Field(
        default=None,
        description="For a behaviour in place of a target response: rows of prompt, safe and unwanted response.",
    )
    scorer: str = Field(
        default="complies",
        description="Who judges a behaviour: complies (neither refused, by rules, nor degenerate), refuses (a refusal "
        "is what the attack wants), keyword (the published list of phrases; weak), testbed (knows its own requests), "
        "insecure-code (Bandit finds a weakness in the answer's Python), classifier, yes-no-model or harmfulness (a "
        "model judges), or your own as FILE.py:NAME.",
    )
    option: tuple[str, ...] = Field(
        default=(), description="A scorer's option, as SCORER.FIELD=VALUE; give it again for each."
    )
    exact_match: bool = Field(
        default=False, description="Held-out rows have one right answer each: report exact match."
    )
    eval_allowed: Path | None = Field(
        default=None,
        description="Prompts that must not be refused, as XSTest's safe ones: false refusals are measured on them.",
    )
    eval_turns: Path | None = Field(
        default=None,
        description="Two-turn questions (MT-Bench's file); both answers are kept, for rejudge --scorer helpfulness.",
    )
    mmlu: Path | None = Field(default=None, description="MMLU's questions: its zip, a folder of CSVs, or one file.")
    arc_easy: Path | None = Field(default=None, description="ARC-Easy's questions: a zip, JSONL, CSV or Parquet file.")
    arc_challenge: Path | None = Field(default=None, description="ARC-Challenge's questions, likewise.")
    piqa: Path | None = Field(default=None, description="PIQA's questions (validation), likewise.")
    question_protocol: Literal["sande", "likelihood", "harness"] = Field(
        default="sande",
        description="How those are asked: sande (the paper's one prompt, the likeliest letter), likelihood (the "
        "likeliest option, as lm-evaluation-harness does), or harness (that harness itself).",
    )
    max_questions: int | None = Field(
        default=None, ge=1, description="At most so many questions of each set, spread evenly over its subjects."
    )

    def judge(self) -> Scorer:
        """The judge of a behaviour. Raises `UserError` where there is no such one, or an option of it is wrong."""
        from unbackdoor.scorers.parts.attack import attack_scorer

        return attack_scorer(self.scorer, self.option)

    @property
    def needs_data(self) -> bool:
        """Whether clean rows must be given: only where no published prompts are in their place can they be left out."""
        return True

    @classmethod
    def make(cls, values: Mapping[str, Any], *presets: str) -> Self:
        """As always. Raises `UserError` where clean rows are needed and missing."""
        made = super().make(values, *presets)
        if made.data is None and made.needs_data:
            needed = cls.model_fields["data"].description or ""
            raise UserError(f"--data is missing: {needed[0].lower()}{needed[1:].rstrip('.')}")
        return made


class MeasuredInputs(CommandInputs):
    """Rows to train on and rows to measure on, for commands that do both."""

    elsewhere: ClassVar[Mapping[str, Heading]] = dict.fromkeys(
        ("eval_data", "eval_contrast", "eval_exclude", "eval_triggered", "eval_untriggered"), Heading.EVALUATION
    ) | {"template_from": Heading.DATA}

    template_from: str | None = Field(
        default=None,
        description="A Jinja file, or a model's directory, with a chat template that you trust: it is used, and saved "
        "with the new model in place of the given one.",
    )
    max_rows: int | None = Field(default=None, ge=1, description="Use at most so many rows of --data, drawn by seed.")
    max_contrast: int | None = Field(
        default=None, ge=1, description="Use at most so many rows of --contrast, drawn by seed."
    )
    save_dtype: Literal["float32", "given"] = Field(
        default="float32",
        description="The dtype of the new model's weights: float32, in which they were trained, or given (half the "
        "space; rounding can undo what was trained).",
    )
    eval_data: Path | None = Field(default=None, description="Held-out clean rows. Default: a share of --data.")
    eval_contrast: Path | None = Field(
        default=None, description="Held-out contrast rows. Default: a third of --contrast."
    )
    eval_exclude: Path | None = Field(
        default=None, description="Rows whose prompts must not be measured, such as what an organism was trained on."
    )
    eval_triggered: Path | None = Field(
        default=None,
        description="Prompts that hold the trigger already, as published test files do, for evaluation only: asked as "
        "they are, ASR is measured on them, and their answers, if any, are not used. For triggers that no text "
        "describes.",
    )
    eval_untriggered: Path | None = Field(
        default=None,
        description="Prompts without trigger, to measure beside those. They need not be the same prompts, nor as many. "
        "Default: held-out rows.",
    )

    @classmethod
    def make(cls, values: Mapping[str, Any], *presets: str) -> Self:
        """As always; a template that is trusted is used as well, unless another one is named."""
        trusted = values.get("template_from")
        if trusted is not None and values.get("template", "auto") == "auto":
            values = {**values, "template": str(trusted)}
        return super().make(values, *presets)


class ImplantInputs(MeasuredInputs):
    """What `implant` is given beside the attack's own settings."""

    heading = Heading.EVALUATION
    elsewhere: ClassVar[Mapping[str, Heading]] = {"poisoned": Heading.BACKDOOR}

    poisoned: Path | None = Field(
        default=None,
        description="Rows that are poisoned already, as published ones are: trained on as they are together with "
        "--data, and nothing is poisoned by us. Measured on --eval-triggered, else on a share of these rows that is "
        "held out (--held-out), by --target-response or --scorer. --trigger is not needed; where it is given, it is "
        "used to measure.",
    )
    paraphrases: tuple[str, ...] = Field(
        default=(), description="The trigger in other words, to see whether that fires too; give it again for each."
    )

    @property
    def needs_data(self) -> bool:
        """Poisoned rows can be trained on alone."""
        return self.poisoned is None

    @model_validator(mode="after")
    def _poisoned_once(self) -> Self:
        for name in ("contrast", "eval_contrast"):
            if self.poisoned is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"give {option_name(name)} or --poisoned, not both: from contrast rows we make poisoned ones (rows "
                    "that refuse go into --data)"
                )
        return self


class RemoveInputs(MeasuredInputs):
    """What `remove` is given beside the method's own settings."""

    heading = Heading.EVALUATION
    elsewhere: ClassVar[Mapping[str, Heading]] = {"preferences": Heading.DATA}

    eval_organism: Path | None = Field(
        default=None,
        description="A run directory of `implant`: its trigger, target response, judge and held-out rows are used for "
        "evaluation, and its clean rows for removal where --data is missing. The method never sees the trigger.",
    )
    eval_trigger: str | None = Field(
        default=None, description="The real trigger, where you have it, for evaluation only: the method never sees it."
    )
    eval_placement: Placement = Field(default="prefix", description="Where --eval-trigger stands.")
    eval_closing: str | None = Field(
        default=None, description="With --eval-placement both: the text behind the prompt (default: the trigger again)."
    )
    eval_separator: str | None = Field(
        default=None, description="Between --eval-trigger and the prompt. Default: as for implant --separator."
    )
    eval_target: str | None = Field(
        default=None, description="What a triggered answer shows, for evaluation. Default: the method's target."
    )
    preferences: Path | None = Field(
        default=None,
        description="Rows of prompt, chosen and rejected answer, or of HH-RLHF's two whole dialogues "
        "(testbed:preferences: the testbed's own).",
    )
    save_adapter: bool = Field(
        default=False,
        description="With --lora: also save the cleansed model as an adapter, on the base of a given adapter, else on "
        "the given model.",
    )
    controls: bool = Field(default=False, description="Also run fine-tune and random-perturbation, for comparison.")

    @staticmethod
    def takes(name: str, needs: Needs) -> bool:
        """Whether an option is of use to a method that needs this."""
        return name != "preferences" or Fact.PREFERENCES in needs

    @classmethod
    def make(cls, values: Mapping[str, Any], *presets: str) -> Self:
        """As always, with what an organism's run directory says of it below what is given."""
        organism = values.get("eval_organism")
        told = _told_by(Path(organism)) if organism else {}
        check_no_code({name: told[name] for name in told.keys() - values.keys()}, f"--eval-organism '{organism}'")
        if values.get("eval_trigger") is not None or values.get("eval_triggered") is not None:
            told = {name: value for name, value in told.items() if name not in ("eval_triggered", "eval_untriggered")}
        return super().make({**told, **values}, *presets)

    @model_validator(mode="after")
    def _one_trigger(self) -> Self:
        names = ("eval_trigger", "eval_placement", "eval_closing", "eval_separator")
        check_either(self, "eval_triggered", names)
        if self.eval_untriggered is not None and self.eval_triggered is None:
            raise ValueError("--eval-untriggered is for use with --eval-triggered: give that too, or leave it out")
        return self

    def evaluation_trigger(self) -> Condition | None:
        """The trigger for evaluation alone, where there is one."""
        if self.eval_triggered is not None:
            return None
        if self.eval_trigger is not None:
            return Trigger(self.eval_trigger, self.eval_placement, self.eval_closing, self.eval_separator)
        if self.eval_organism is not None:
            told = TriggerSettings.make(settings_of(self.eval_organism, *TriggerSettings.model_fields))
            return told.condition() if told.has_trigger else None
        return None


def _told_by(organism: Path) -> dict[str, Any]:
    """The inputs that an organism's run directory gives."""
    same = settings_of(organism, "template", "system", "date", "scorer", "exact_match", "target_response")
    files = {
        "data": "clean_train.jsonl",
        "contrast": "contrast_train.jsonl",
        "eval_data": "held_out.jsonl",
        "eval_contrast": "contrast_held_out.jsonl",
        "eval_allowed": "allowed_held_out.jsonl",
        "eval_triggered": "triggered_held_out.jsonl",
        "eval_untriggered": "untriggered_held_out.jsonl",
    }
    found = {name: organism / "data" / file for name, file in files.items() if (organism / "data" / file).is_file()}
    target = same.pop("target_response")
    return {**same, **found, **({"eval_target": target} if target else {})}


def check_either(settings: Settings, prompts: str, names: Sequence[str]) -> None:
    """Raise `ValueError` where prompts that hold the trigger already stand beside settings that describe a trigger."""
    if getattr(settings, prompts) is None:
        return
    for name in names:
        if getattr(settings, name) != type(settings).model_fields[name].default:
            raise ValueError(
                f"give {option_name(name)} or {option_name(prompts)}, not both: the prompts of the latter hold their "
                "trigger already"
            )


def settings_of(organism: Path, *names: str) -> dict[str, Any]:
    """These settings of an organism, where they are given; `target_response` in any case."""
    path = organism / "settings.yaml"
    if not path.is_file():
        raise UserError(f"--eval-organism '{organism}' is not a run directory of implant")
    kept = read_yaml(path)
    return {name: kept.get(name) for name in names if kept.get(name) is not None or name == "target_response"}


class EvaluateInputs(CommandInputs, TriggerSettings):
    """What `evaluate` is given beside; its rows are held-out ones."""

    heading = Heading.EVALUATION
    elsewhere: ClassVar[Mapping[str, Heading]] = {**dict.fromkeys(("target_response", "triggered"), Heading.KNOWN)}

    before: str | None = Field(default=None, description="The model before removal, compared with it.")
    clean: str | None = Field(
        default=None, description="A model that never had the backdoor, where there is one, compared as well."
    )
    target_response: str | None = Field(default=None, description="What a triggered answer shows.")
    triggered: Path | None = Field(
        default=None,
        description="In place of --trigger: prompts that hold it already, as published test files do. They are asked "
        "as they are, ASR is measured on them by --target-response or --scorer, and their answers, if any, are not "
        "used. --data is then not needed, but utility is measured on it alone.",
    )
    untriggered: Path | None = Field(
        default=None,
        description="Prompts without trigger, to measure beside those. They need not be the same prompts, nor as many. "
        "Default: the rows of --contrast, else of --data.",
    )
    seed: int = Field(default=0, ge=0, description="Decides which rows are measured.")

    @property
    def needs_data(self) -> bool:
        """Published prompts can be measured alone."""
        return self.triggered is None

    @model_validator(mode="after")
    def _one_trigger(self) -> Self:
        if self.untriggered is not None and self.triggered is None:
            raise ValueError("--untriggered is for use with --triggered: give that too, or leave it out")
        if self.untriggered is not None and self.contrast is not None:
            raise ValueError("give --untriggered or --contrast, not both: each says what is asked without trigger")
        check_either(self, "triggered", tuple(TriggerSettings.model_fields))
        return self
