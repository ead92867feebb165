"""The command line. It parses, calls and prints; options are made from the settings' fields, never written twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Before torch is loaded: OpenMP threads that spin while they wait slow other busy processes down, two- to thirtyfold,
# and ones that never do gain little by a second core. So they spin shortly (benchmarks/threads.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click

from unbackdoor import __version__
from unbackdoor.cli_help import Group, Option
from unbackdoor.commands import attacks, demo, evaluate, implant, methods, rejudge, remove, reproduce, sweep, testbed
from unbackdoor.errors import ExitCode, UserError
from unbackdoor.interrupts import handled_by, interrupt
from unbackdoor.language_model.files.loader_errors import PANIC
from unbackdoor.screen import ReaderGoneError, let_libraries_speak_visibly, put, say

COMMANDS = (demo, implant, attacks, sweep, methods, remove, evaluate, rejudge, reproduce, testbed)
"""In the order in which help lists them."""


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
    for each in COMMANDS:
        group.add_command(each.command())
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
    _open_streams()
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
    except SystemExit as error:  # nothing here raises it: a scorer or a method in a file of the user's own
        code = _fail(
            f"code in a file of yours ended the command (exit {error.code}): let it raise", ExitCode.USER, debug
        )
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        said = f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"
        code = _fail(said, ExitCode.INTERNAL, debug)
    sys.exit(int(code) if isinstance(code, int) else ExitCode.DONE.value)


def _open_streams() -> None:
    """Where a stream is closed (`>&-`), what is printed goes nowhere, and no file that is opened takes its place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115


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
