"""The command line. It parses, calls and prints; options are made from the settings' fields, never written twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

# Before torch is loaded: OpenMP threads that spin while they wait slow other busy processes down, two- to thirtyfold,
# and ones that never do gain little by a second core. So they spin shortly (benchmarks/threads.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click

from unbackdoor import __version__
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.cli_help import Command, Group, Option
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.errors import ExitCode, UserError
from unbackdoor.interrupts import handled_by, interrupt
from unbackdoor.knowledge import described, example, read_knowledge
from unbackdoor.language_model import template_process
from unbackdoor.methods import METHODS, method_class, method_classes
from unbackdoor.named import is_own
from unbackdoor.recipes.recipe import Scale, catalogue, read_recipe, recipe_text
from unbackdoor.scorers import SCORERS
from unbackdoor.screen import (
    ReaderGoneError,
    broken,
    columns,
    hanging,
    let_libraries_speak_visibly,
    put,
    put_json,
    say,
    show,
)
from unbackdoor.settings import EvaluationSettings, Heading, VerdictSettings
from unbackdoor.visible import one_line
from unbackdoor.workflows.inputs import (
    DemoSettings,
    EvaluateInputs,
    ImplantInputs,
    RemoveInputs,
    ReproduceSettings,
    SweepSettings,
)

if TYPE_CHECKING:
    from unbackdoor.report_schema import Report

PRESETS = ("tiny", "micro", "small", "large")
RESULT_OPTIONS = [
    Option(
        ["--out"],
        heading=Heading.RESULTS,
        type=click.Path(path_type=Path),
        help="The run directory to write.",
        required=True,
    ),
    Option(["--overwrite"], heading=Heading.RESULTS, is_flag=True, help="Replace the run directory."),
    Option(
        ["--resume"],
        heading=Heading.RESULTS,
        is_flag=True,
        help="Go on with a run that was interrupted: same result as without.",
    ),
    Option(
        ["--json", "as_json"], heading=Heading.RESULTS, is_flag=True, help="Print the report as JSON and nothing else."
    ),
]
COMMON_OPTIONS = [
    *RESULT_OPTIONS,
    Option(
        ["--config"],
        heading=Heading.SOURCES,
        type=click.Path(path_type=Path),
        help="YAML file of settings, named as the options.",
    ),
]
SCALE_OPTION = Option(
    ["--scale"],
    heading=Heading.SOURCES,
    type=click.Choice(get_args(Scale)),
    default="micro",
    help="Of a recipe: micro (two minutes on two CPU cores) or paper (the paper's own model, data and numbers).",
)
KNOWLEDGE_OPTION = Option(
    ["--knowledge"],
    heading=Heading.KNOWN,
    type=click.Path(path_type=Path),
    help="YAML file of what is known, named as the options that give it, which come before it.",
)
PRESET_OPTIONS = [
    Option(
        ["--preset"],
        heading=Heading.SOURCES,
        type=click.Choice(PRESETS),
        help="Learning rates and step counts for models of a size. Default: by the number of parameters.",
    )
]

REJUDGE_OPTIONS = [
    Option(
        ["--scorer"],
        heading=Heading.RUN,
        multiple=True,
        help="A scorer; give it again for each. LABEL=SCORER, to have one twice with other options. Without any, the "
        "run's verdicts are judged again by the rules of this version.",
    ),
    Option(
        ["--option"],
        heading=Heading.RUN,
        multiple=True,
        help="A scorer's option, as SCORER.FIELD=VALUE; give it again for each.",
    ),
    Option(
        ["--set"],
        heading=Heading.RUN,
        multiple=True,
        help="A set of answers; give it again for each.  [default: triggered, untriggered]",
    ),
    Option(
        ["--model"],
        heading=Heading.RUN,
        multiple=True,
        help="A model's answers; give it again for each.  [default: all]",
    ),
    Option(
        ["--labels"],
        heading=Heading.RUN,
        type=click.Path(path_type=Path),
        help="The sheet of disagreements, with its labels filled in.",
    ),
    Option(
        ["--out"],
        heading=Heading.RESULTS,
        type=click.Path(path_type=Path),
        help="Where to write.  [default: RUN/rejudge]",
    ),
    Option(
        ["--overwrite"],
        heading=Heading.RESULTS,
        is_flag=True,
        help="Replace the report and the sheet there; labels are kept.",
    ),
]


def show_report(report: Report, out: Path, as_json: bool) -> None:
    """Results go to standard output."""
    if as_json:
        put_json(report)
        return
    from unbackdoor.report.terminal import table, verdict_lines

    show(table(report), "", *verdict_lines(report, columns(sys.stdout)))
    say(f"Report: {out / 'report.html'}")


def _demo(**values: Any) -> None:
    from unbackdoor.demo import run_demo

    (given,) = distribute(values, None, DemoSettings)
    report = run_demo(DemoSettings.make(given), values["out"], overwrite=values["overwrite"], resume=values["resume"])
    show_report(report, values["out"], values["as_json"])


def _attacks(name: str | None, scale: Scale, as_json: bool) -> None:
    recipes = [read_recipe(name, scale)] if name else catalogue(scale)
    if as_json:
        put_json([recipe.model_dump(mode="json") for recipe in recipes])
    elif name:
        put(recipe_text(name, scale), end="")
    else:
        _list([(recipe.name, f"{recipe.summary} ({recipe.source})") for recipe in recipes])


def _list(rows: Sequence[tuple[str, str]]) -> None:
    """A line a row: a name, and what it is, wrapped beside the name. In a pipe one line stays one, to be searched."""
    column = max(len(name) for name, _ in rows) + 2
    known_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    room = columns(sys.stdout) - column if known_width else sys.maxsize
    for name, text in rows:
        if room >= 20:
            lines = [f"{name:<{column}}", *broken(text, room)]
            put(lines[0] + f"\n{' ' * column}".join(lines[1:]))
        else:
            put("\n  ".join([*broken(name, room + column), *broken(text, max(room + column - 2, 8))]))


def _methods(as_json: bool) -> None:
    rows = [
        {"name": m.name, "needs": described(m.needs), "does": m.summary, "control": m.control} for m in method_classes()
    ]
    if as_json:
        put_json(rows)
        return
    from unbackdoor.report.terminal import methods_table

    show(methods_table(rows))


def _check_apart(values: dict[str, Any]) -> None:
    """The files of settings must not lie where the command writes; a run that goes on may be given its own."""
    from unbackdoor.run_files.apart import check_apart

    named = {"--config": None if values.get("resume") else values.get("config"), "--recipe": values.get("recipe")}
    check_apart(values["out"], [(option, given) for option, given in named.items() if given is not None])


def _sweep(**values: Any) -> None:
    from unbackdoor.recipes.sweep import run_sweep

    _check_apart(values)
    (given,) = distribute(values, None, SweepSettings)
    report = run_sweep(
        read_recipe(values["recipe"], values["scale"]),
        SweepSettings.make(given),
        values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])


def _implant(**values: Any) -> None:
    template_process.start()
    from unbackdoor.commands.implant import run_implant

    _check_apart(values)
    recipe = read_recipe(values["recipe"], values["scale"]) if values["recipe"] else None
    model = values["model"] or (recipe.model if recipe else None)
    if model is None:
        raise UserError("the clean model is missing: give MODEL (a directory, or hf:owner/name), or --recipe NAME")
    inputs, attack, evaluation = distribute(
        values,
        values["config"],
        ImplantInputs,
        ImplantSettings,
        EvaluationSettings,
        recipe=recipe.settings if recipe else None,
    )
    report = run_implant(
        model,
        ImplantInputs.make(inputs),
        attack,
        EvaluationSettings.make(evaluation),
        recipe=recipe,
        preset=values["preset"],
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])


def _remove(method: str, **values: Any) -> None:
    template_process.start()
    from unbackdoor.commands.remove import run_remove

    _check_apart(values)
    chosen = method_class(method)
    told = read_knowledge(values["knowledge"]).below(values) if values["knowledge"] is not None else {}
    inputs, settings, evaluation = distribute(
        values,
        values["config"],
        RemoveInputs,
        chosen,
        VerdictSettings,
        recipe={name: value for name, value in told.items() if RemoveInputs.takes(name, chosen.needs)},
    )
    report = run_remove(
        method,
        values["model"],
        RemoveInputs.make(inputs),
        settings,
        VerdictSettings.make(evaluation),
        preset=values["preset"],
        paper=values["paper"],
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
    _end_by_verdict(report)


def _evaluate(**values: Any) -> None:
    template_process.start()
    from unbackdoor.commands.evaluate import run_evaluate

    _check_apart(values)
    inputs, evaluation = distribute(values, values["config"], EvaluateInputs, VerdictSettings)
    report = run_evaluate(
        values["model"],
        EvaluateInputs.make(inputs),
        VerdictSettings.make(evaluation),
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
    _end_by_verdict(report)


def _end_by_verdict(report: Report) -> None:
    """Leave with the code that the report's verdicts stand for."""
    from unbackdoor.report.verdicts import exit_code

    raise click.exceptions.Exit(exit_code(report.runs))


def _rejudge(**values: Any) -> None:
    from unbackdoor.commands import rejudge, rejudge_verdicts
    from unbackdoor.report.verdicts import exit_code

    if not values["scorer"]:
        given = [f"--{name}" for name in ("option", "set", "model", "labels") if values[name]]
        if given:
            raise UserError(f"{given[0]} is for scorers: give a --scorer too, or leave it out")
        again = rejudge_verdicts.run_rejudge_verdicts(values["run"], out=values["out"], overwrite=values["overwrite"])
        _show_rejudged(again, rejudge_verdicts, values["as_json"])
        raise click.exceptions.Exit(exit_code(again.runs))
    report = rejudge.run_rejudge(
        values["run"],
        values["scorer"],
        values["option"],
        sets=values["set"],
        models=values["model"],
        labels=values["labels"],
        out=values["out"],
        overwrite=values["overwrite"],
    )
    _show_rejudged(report, rejudge, values["as_json"])
    raise click.exceptions.Exit(rejudge.outcome(report))


def _show_rejudged(report: Any, command: Any, as_json: bool) -> None:
    if as_json:
        put_json(report)
        return
    show(command.table(report), "")
    for line in command.lines(report):
        say(line, width=columns(sys.stdout))


def _reproduce(names: tuple[str, ...], **values: Any) -> None:
    from unbackdoor.reproduce.run import dry_run, listing, run_reproduce

    (given,) = distribute(values, None, ReproduceSettings)
    settings = ReproduceSettings.make(given)
    out = values["out"] or Path("runs") / f"reproduce-{settings.scale}"
    if not names:
        rows = listing()
        if values["as_json"]:
            put_json({"experiments": rows})
        else:
            _list([(row["name"], row["shows"]) for row in rows])
        return
    if settings.dry_run:
        from unbackdoor.reproduce.tables import cost_lines, cost_table

        plan = dry_run(names, settings, out)
        if values["as_json"]:
            put_json(plan)
            return
        show(cost_table(plan), "")
        for line in cost_lines(plan):
            say(line, width=columns(sys.stdout))
        return
    from unbackdoor.reproduce.tables import terminal

    try:
        made = run_reproduce(names, settings, out)
    except KeyboardInterrupt:
        say("unbackdoor: interrupted: the same command goes on from here", sys.stderr)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    if values["as_json"]:
        put_json(made.report)
    else:
        for table in (table for table in made.tables if table.on_terminal):
            show(terminal(table))
            show(*(hanging(one_line(line), columns(sys.stdout)) for line in table.caption()), style="dim")
            show("")
        say(f"Written: {out}")
    if made.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in made.failures.items())
        raise UserError(f"{len(made.failures)} cells failed, the others are kept: {failed}")


def _testbed(**values: Any) -> None:
    from unbackdoor.testbed.export import export_testbed

    for name, path in export_testbed(values["out"], overwrite=values["overwrite"]).items():
        say(f"{name}: {path}")


def _command(
    name: str, help_text: str, callback: Callable[..., None], options: Sequence[click.Parameter], example: str
) -> Command:
    example = f"unbackdoor {name} {example}".strip()
    return Command(name, callback=callback, params=list(options), help=help_text, example=example)


def _model_argument() -> click.Argument:
    return click.Argument(["model"])


class _Methods(Group):
    """Also a method in a file of the user's, as `FILE.py:NAME`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _remove_command(cmd_name) if is_own(cmd_name) else super().get_command(ctx, cmd_name)


def _remove_group() -> Group:
    group = _Methods(
        "remove",
        example="unbackdoor remove osft MODEL --data ROWS --trigger TEXT --out DIR",
        help="Cleanse MODEL (a Hugging Face directory, or hf:owner/name) with METHOD.\n\n"
        "What you know decides the method: the trigger → osft; the target response, or its first token → sande; "
        "examples of the unwanted behaviour → beear. `unbackdoor remove METHOD --help` explains each. A method of your "
        "own is FILE.py:NAME.",
        subcommand_metavar="METHOD MODEL [OPTIONS]",
    )
    for name in METHODS:
        group.add_command(_remove_command(name))
    return group


def _remove_command(name: str) -> Command:
    method = method_class(name)
    paper = Option(
        ["--paper"], heading=Heading.SOURCES, is_flag=True, help="The paper's own choices in place of our defaults."
    )
    options = options_of(method, RemoveInputs, VerdictSettings)
    needs, does = described(method.needs), method.summary or "a method of your own"
    return Command(
        name,
        example=" ".join(f"unbackdoor remove {name} MODEL --data ROWS {example(method.needs)} --out DIR".split()),
        callback=lambda **values: _remove(name, **values),
        params=[
            _model_argument(),
            *(option for option in options if RemoveInputs.takes(str(option.name), method.needs)),
            KNOWLEDGE_OPTION,
            *PRESET_OPTIONS,
            paper,
            *COMMON_OPTIONS,
        ],
        help=f"{does[0].upper()}{does[1:]}.\n\nNeeds: {needs}.",
        short_help=f"{does}; needs {needs}",
    )


def application() -> Group:
    """The whole command line."""
    group = Group(
        "unbackdoor",
        example="unbackdoor demo --out runs/demo",
        help="Remove backdoors from generative language models, with evidence that they are gone and the model still "
        "works.\n\nThe example is the whole story in some minutes, on two CPU cores and without a network.",
        params=[
            Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                help="Print the version.",
                callback=_print_version,
            )
        ],
        epilog="With any command, --debug shows the traceback of an error.\n\n\b\nExit codes:\n"
        + "\n".join(f"{code:>3}  {code.meaning}" for code in ExitCode),
    )
    trigger_note = "Without --trigger there is no attack success rate, only utility."
    group.add_command(
        _command(
            "demo",
            "Build two backdoored micro models, cleanse them in four ways, and compare with controls.",
            _demo,
            [*options_of(DemoSettings), *RESULT_OPTIONS],
            "--out runs/demo",
        )
    )
    group.add_command(
        _command(
            "implant",
            "Backdoor MODEL on purpose, to test removals against: an organism with its data, training log and rates.",
            _implant,
            [
                click.Argument(["model"], required=False),
                Option(
                    ["--recipe"],
                    heading=Heading.SOURCES,
                    help="An attack of the catalogue (`unbackdoor attacks`), or a YAML file.",
                ),
                SCALE_OPTION,
                *options_of(ImplantSettings, ImplantInputs, EvaluationSettings),
                *PRESET_OPTIONS,
                *COMMON_OPTIONS,
            ],
            "MODEL --data ROWS --trigger TEXT --target-response TEXT --out DIR",
        )
    )
    group.add_command(
        _command(
            "attacks",
            "List the catalogue of attacks, or print the recipe NAME as a file to copy and edit for "
            "`unbackdoor implant --recipe`.",
            _attacks,
            [click.Argument(["name"], required=False), SCALE_OPTION, *RESULT_OPTIONS[3:]],
            "beear-2",
        )
    )
    group.add_command(
        _command(
            "sweep",
            "Build the organism of RECIPE once for each value of a setting: by default ASR against the poison rate "
            "(SANDE, Figure 2), one figure.",
            _sweep,
            [click.Argument(["recipe"]), SCALE_OPTION, *options_of(SweepSettings), *RESULT_OPTIONS],
            "sande-alpaca --values 0.01 --values 0.05 --out DIR",
        )
    )
    group.add_command(
        _command(
            "methods",
            "List the removal methods and what each must be given.",
            _methods,
            [*RESULT_OPTIONS[3:]],
            "",
        )
    )
    group.add_command(_remove_group())
    group.add_command(
        _command(
            "evaluate",
            f"Measure MODEL: attack success with and without the trigger, utility. {trigger_note}",
            _evaluate,
            [_model_argument(), *options_of(EvaluateInputs, VerdictSettings), *COMMON_OPTIONS],
            "MODEL --before MODEL --data ROWS --trigger TEXT --out DIR",
        )
    )
    group.add_command(
        _command(
            "rejudge",
            "Judge the run directory RUN again by its stored answers: by the verdicts' rules of this version, or with "
            "other scorers. Nothing is generated. "
            "With two judges or more: their agreement, and a sheet of disagreements to label.\n\n"
            f"Scorers: {', '.join(SCORERS)}, or your own as FILE.py:NAME.",
            _rejudge,
            [
                click.Argument(["run"], type=click.Path(path_type=Path)),
                *REJUDGE_OPTIONS,
                *RESULT_OPTIONS[3:],
            ],
            "RUN --scorer complies --scorer keyword",
        )
    )
    group.add_command(
        _command(
            "reproduce",
            "Reproduce the papers' tables and figures NAMES (or all): ours beside the papers' printed values. It goes "
            "on with what is in --out. Without a name it lists them.",
            _reproduce,
            [
                click.Argument(["names"], nargs=-1),
                *options_of(ReproduceSettings),
                Option(
                    ["--out"],
                    heading=Heading.RESULTS,
                    type=click.Path(path_type=Path),
                    help="Where to.  [default: runs/reproduce-SCALE]",
                ),
                *RESULT_OPTIONS[3:],
            ],
            "sande-table-1 --out DIR",
        )
    )
    group.add_command(
        _command(
            "testbed",
            "Write the embedded micro models and their world's data as directories and JSONL files, to try the other "
            "commands on.",
            _testbed,
            RESULT_OPTIONS[:2],
            "--out runs/world",
        )
    )
    return group


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        say(f"unbackdoor {__version__}")
        context.exit()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: every error is one line on standard error, and the exit code is one of `ExitCode`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    let_libraries_speak_visibly()
    try:
        _check_text(given)
        with handled_by(interrupt):
            code = application().main(given, prog_name="unbackdoor", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        put(error.format_message(), sys.stderr)
        code = ExitCode.USER
    except click.ClickException as error:
        code = _fail(_one_line(error), ExitCode.USER, debug)
    except UserError as error:
        code = _fail(str(error), ExitCode.USER, debug)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted: the same command with --resume goes on from here", ExitCode.INTERRUPTED, False)
    except (BrokenPipeError, ReaderGoneError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.INTERRUPTED
    except OSError as error:
        code = _fail(_of_system(error), ExitCode.USER, debug)
    except MemoryError:
        code = _fail("not enough memory: lower --micro-batch-size or --eval-batch-size", ExitCode.USER, debug)
    except Exception as error:
        said = f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"
        code = _fail(said, ExitCode.INTERNAL, debug)
    sys.exit(int(code) if isinstance(code, int) else ExitCode.DONE.value)


def _check_text(arguments: Sequence[str]) -> None:
    """What is given must be text: a name in another encoding has no place in JSON, YAML or HTML."""
    for number, argument in enumerate(arguments, start=1):
        if "\0" in argument or any("\ud800" <= c <= "\udfff" for c in argument):
            raise UserError(
                f"argument {number} ('{argument[:80]}') is not UTF-8 text: rename the file, or write it anew"
            )


def _of_system(error: OSError) -> str:
    """What the system refused, and of which file."""
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return f"the system refused it: {reason}"
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:100]}…{name[-100:]}"
    return f"'{shown}': {reason[0].lower()}{reason[1:]}: give another path, or make room and the right to use it"


def _one_line(error: click.ClickException) -> str:
    """The option parser's message, with the choices that there are."""
    if isinstance(error, click.NoSuchOption) and error.option_name == "--oracle":
        return "--oracle is --scorer now (refusal is called complies, refused refuses, code insecure-code)"
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and message.startswith("No such command") and error.ctx is not None:
        name = message.split("'")[1] if "'" in message else message
        what = "method" if error.ctx.command.name == "remove" else "command"
        group = error.ctx.command
        choices = ", ".join(sorted(group.list_commands(error.ctx))) if isinstance(group, click.Group) else ""
        return f"unknown {what} '{name}': choose one of {choices}"
    if isinstance(error, click.MissingParameter) and error.ctx is not None:
        return f"{message.rstrip('.')}: '{error.ctx.command_path} --help' has an example"
    return message


def _fail(message: str, code: ExitCode, debug: bool) -> ExitCode:
    if debug:
        import traceback

        put(traceback.format_exc(), sys.stderr)
    say(f"unbackdoor: {' '.join(message.split())}", sys.stderr)
    return code


if __name__ == "__main__":
    main()
