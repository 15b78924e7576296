"""The command line: parses, calls, prints. No logic of its own. Each group of commands has a module of its own.

What a command needs is imported when it runs: `kgas-async --help` is there at once.
"""

from __future__ import annotations

import re
import sys
from shutil import get_terminal_size
from typing import Any, Final

try:
    import rich
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:  # the extra is not installed
    from ._suggest import extra_hint

    sys.stderr.write(f"error: kgas-async needs {missing.name}; {extra_hint('cli')}\n")
    sys.exit(2)

from ._cli_check import add_check
from ._cli_evidence import add_evidence
from ._cli_journal import add_journal
from ._cli_report import add_report
from ._cli_run import add_run
from ._cli_status import add_status
from ._cli_text import results, say, tells_tracebacks
from ._cli_tools import add_tools

__all__ = ["app"]

del rich

NAME: Final = "kgas-async"  # also where it is run by `python -m`
NARROW: Final = 60  # columns below which help is plain: its tables would cut the names of options
UsageError: Any = typer.BadParameter.__mro__[1]  # of click, or of typer's own copy of it
ClickException: Any = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """Commands whose misuse is said in one line."""

    def main(self, args: Any = None, prog_name: str | None = None, *_: Any, **extra: Any) -> Any:
        """Run a command, and end the process with its code; give it, with ``standalone_mode=False``."""
        standalone = extra.pop("standalone_mode", True)
        try:
            code = super().main(args, prog_name=NAME, standalone_mode=False, **extra)
        except UsageError as error:
            code = _say_usage(error)
        except ClickException as error:
            say(f"error: {error.format_message()}")
            code = error.exit_code
        if standalone:
            sys.exit(code)
        return code


def _say_usage(error: Any) -> int:
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its help is the mend
        error.show()
        return 2
    message = error.format_message().rstrip(".? ")
    message = message[:1].lower() + message[1:]
    message = message.replace(". Did you mean ", "; did you mean ")
    message = re.sub(r" \(Possible options: (.*)\)$", r"; did you mean \1", message)
    mark = "?" if "; did you mean " in message else ";"
    path = NAME if context is None else context.command_path
    if message.startswith("no such option: --traceback"):
        message = f"--traceback comes before this command: {NAME} --traceback{path.removeprefix(NAME)}"
    say(f"error: {message}{mark} see '{path} --help'")
    return 2


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"kgas-async {version('kgas-async')}")
        except PackageNotFoundError:
            typer.echo("kgas-async, from sources that are not installed")
        raise typer.Exit


app = typer.Typer(
    name="kgas-async", cls=Commands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="rich" if get_terminal_size().columns >= NARROW else None,
)  # fmt: skip


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Say the version and end.", callback=_say_version, is_eager=True
    ),
    traceback: bool = typer.Option(
        False, "--traceback", help="For authors: with an error, the traceback of where it came from."
    ),
) -> None:
    """Run tools over many items: bounded, cancellable, on record.

    Results go to standard output, all else to standard error. Exit codes:
    0 all is well; 1 some items failed; 2 it could not start, or the command
    is wrong; 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP after draining.

    Examples:

    kgas-async run examples.knowledge_graph:pipeline --evidence run.jsonl

    kgas-async status run.jsonl
    """
    tells_tracebacks.wanted = traceback
    results.stream = None


add_run(app)
add_check(app)
add_status(app)
add_report(app)
add_tools(app)
add_evidence(app)
add_journal(app)
