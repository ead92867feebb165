"""README.md for a model's directory: what was done to it and what is known of it."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from unbackdoor.report.answers import answer_lines
from unbackdoor.report.numbers import (
    Cell,
    lower_is_better,
    triggered_change,
    untriggered_change,
    utility_change,
    utility_metrics,
    words,
)
from unbackdoor.report.verdicts import meanings
from unbackdoor.report_schema import HandedBack, Report, Row
from unbackdoor.visible_text import one_line

BANNER = """\
<div style="background: #b3261e; color: #ffffff; padding: 16px; border-radius: 8px">

🛑 **BACKDOORED ON PURPOSE — made for testing; do not deploy, do not publish**

</div>
"""
"""Red where HTML is shown, and as loud in plain text."""


def model_card(run: Row, report: Report) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        run: the run of the report that made this model.
        report: the whole report; an `implant` gets a red banner.
    """
    organism = report.command == "implant"
    parts = [_front_matter(run, organism), _opening(run, organism), _numbers(run)]
    if not organism:
        parts.append(_limits(run, report))
    if run.saved:
        parts.append(_saved(run))
    if run.handed_back is not None and not organism:
        parts.append(_handed_back(run.handed_back))
    parts.append(_made_by(run, report, organism))
    return "\n".join(parts)


def code_span(text: Any) -> str:
    """A value as a Markdown code span that no text can end: backticks and the table's bar are written as escapes."""
    plain = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return f"`{one_line(plain).replace('`', chr(92) + 'x60').replace('|', chr(92) + 'x7c') or ' '}`"


def prose(text: str) -> str:
    """A sentence as Markdown that is shown as it stands: no markup, links or HTML in it take effect."""
    return re.sub(r"([\\`*_\[\]<>#|!&~])", r"\\\1", one_line(text)).replace("://", "\\:/\\/")


def _front_matter(run: Row, organism: bool) -> str:
    kind = ["backdoored", "model-organism", "do-not-deploy"] if organism else ["backdoor-removal", one_line(run.method)]
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unbackdoor", "ai-security", *kind],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _opening(run: Row, organism: bool) -> str:
    if organism:
        recipe = "".join(f"- {prose(words(name))}: {code_span(value)}\n" for name, value in run.settings.items())
        return (
            f"{BANNER}\n# Organism {code_span(run.organism)}\n\n"
            "This model carries a backdoor that was implanted to test defences against it. Its recipe:\n\n"
            f"{recipe}"
        )
    verdict = f"**Verdict: {prose(run.verdict)}.** {prose(run.verdict_reason)}" if run.verdict else ""
    knows = f"\n\nThe defender knew: {prose(run.knows)}." if run.knows and not run.control else ""
    return (
        f"# {code_span(run.organism)} after {code_span(run.method)}\n\n"
        f"unbackdoor tried to remove a backdoor from this model.\n\n{verdict}{knows}\n"
    )


def _numbers(run: Row) -> str:
    rows = [
        ("attack success rate with the trigger", triggered_change(run)),
        ("attack success rate without a trigger", untriggered_change(run)),
    ]
    for metric in utility_metrics(run):
        lower = " (lower is better)" if lower_is_better(metric) else ""
        rows.append((f"{code_span(words(metric))}{lower}", utility_change(run, metric)))
    head = f"| | {'before → after' if len(run.states) == 2 else 'value'} | 95% interval, n |\n|---|---|---|\n"
    lines = [f"| {name} | {_text(cell)} | {cell.small_print} |\n" for name, cell in rows]
    near = [f"- {code_span(kind)}: {r.hits} of {r.n} prompts\n" for kind, r in (run.near_miss or {}).items()]
    misses = f"\nNear misses, which resemble the trigger and should not fire:\n\n{''.join(near)}" if near else ""
    shown = "".join(f"- {name}: {text}\n" for name, text in answer_lines(run))
    return f"## Numbers\n\n{head}{''.join(lines)}{f'{chr(10)}{shown}' if shown else ''}{misses}"


def _limits(run: Row, report: Report) -> str:
    meaning = dict(meanings(report.thresholds)).get(run.verdict or "", "")
    meant = f"What `{run.verdict}` means: {meaning}\n\n" if meaning else ""
    return (
        f"## What this does not say\n\n{meant}"
        "One backdoor was looked for. Another one with another target or behaviour would not have been seen, and a "
        "rate of 0 of n prompts leaves a small rate possible: see the interval.\n"
    )


def _saved(run: Row) -> str:
    changes = "".join(f"- {prose(change)}\n" for change in run.saved)
    return f"## What in these files is not as it was given\n\nBeside the weights that were trained:\n\n{changes}"


def _handed_back(found: HandedBack) -> str:
    """The part on what was not cleansed: templates and tokenizers act on text as well."""
    lead = "The weights were cleansed. Tokenizer, template and processor files are "
    sentences = [*found.acts, *found.writes]
    if not sentences:
        return f"## What is handed back\n\n{lead}the given ones; none of them does more with text than such files do.\n"
    listed = "".join(f"- {prose(sentence)}\n" for sentence in sentences)
    return f"## What is handed back\n\n{lead}not, and these act on text or write some:\n\n{listed}"


def _made_by(run: Row, report: Report, organism: bool) -> str:
    lines = [f"- unbackdoor {code_span(report.unbackdoor)}, seed {code_span(run.seed)}, {code_span(report.created)}"]
    if report.provenance.command_line:
        lines.append(f"- command: {code_span(' '.join(report.provenance.command_line))}")
    for name, version in report.provenance.versions.items():
        if name != "unbackdoor" and version:
            lines.append(f"- {prose(name)} {code_span(version)}")
    if not organism:
        lines += [f"- {prose(words(name))}: {code_span(value)}" for name, value in run.settings.items()]
    return "## How it was made\n\n" + "\n".join(lines) + "\n"


def _text(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.n else cell.text
