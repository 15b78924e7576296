"""``kgas-async status``: how a run stands, from its evidence; while it goes on, or afterwards."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import typer

from ._cli_text import AS_JSON, fail, out, out_json, width_elsewhere

if TYPE_CHECKING:
    from ._board_file import BoardFile
    from ._picture import Picture

__all__ = ["add_status"]

EVERY_S: Final = 1.0


def add_status(app: typer.Typer) -> None:
    """Give the app this command."""
    app.command("status")(_status)


def _status(
    path: str = typer.Argument(metavar="EVIDENCE", help="The file that --evidence named; its segments are read too"),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the session has ended"),
    as_json: bool = AS_JSON,
) -> None:
    """Say how a run stands: phases, rates, waits, failures, what is in flight.

    It is what the live view shows, told from the evidence of the latest session
    in the file: of one at work, of one that has ended, and of one that was
    killed, with what it left in flight.

    With --json one JSON object; with --follow one each second, a line each.

    Exit codes: 0 it runs, or all has succeeded; 1 some items or calls failed or
    were cancelled; 2 the evidence cannot be read; 3 it was killed; 130 --follow
    was ended by Ctrl-C, which leaves the run alone.

    Examples:

    kgas-async status run.jsonl

    kgas-async status run.jsonl --follow
    """
    from ._board_file import BoardFile
    from ._errors import EvidenceError
    from ._leaving import user_code_begins

    if follow:
        user_code_begins()  # nobody's code does, but there is a view to be closed
    file = BoardFile(path)
    try:
        file.read_on()
        picture = _followed(file, as_json) if follow else file.picture()
    except EvidenceError as error:
        fail(str(error))
    except KeyboardInterrupt:  # it has seen enough, and the view is closed
        raise typer.Exit(130) from None
    if as_json:
        out_json(picture.to_dict(), indent=None if follow else 2)
    elif not (follow and _is_painted()):
        _print(picture)
    raise typer.Exit(_code_of(picture))


def _code_of(picture: Picture) -> int:
    if picture.state == "killed":
        return 3
    if picture.items.failed or picture.items.cancelled:
        return 1
    return 1 if any(one.failed or one.cancelled for one in picture.phases) else 0


def _print(picture: Picture) -> bool:
    from ._cli_picture import lines_of

    if sys.stdout.isatty():
        console = _console()
        for line in lines_of(picture, console.width):
            console.print(line, highlight=False, soft_wrap=True)
        return True
    return all(out(line.plain.rstrip()) for line in lines_of(picture, width_elsewhere()))


def _is_painted() -> bool:
    return sys.stdout.isatty() and not _console().is_dumb_terminal


def _console() -> Any:
    from ._cli_picture import SteadyConsole

    return SteadyConsole()


def _followed(file: BoardFile, as_json: bool) -> Picture:
    """The last picture, once the session has ended; those before are shown as they come."""
    if _is_painted() and not as_json:
        return _painted(file)
    while (picture := file.picture()).state in ("running", "draining"):
        shown = out_json(picture.to_dict(), indent=None) if as_json else _print(picture) and out("")
        if shown:
            sys.stdout.flush()
        else:
            raise typer.Exit(0)  # nobody reads it any more
        time.sleep(EVERY_S)
        file.read_on()
    return picture


def _painted(file: BoardFile) -> Picture:
    from rich.live import Live
    from rich.text import Text

    from ._cli_picture import lines_of

    console = _console()
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            picture = file.picture()
            live.update(Text("\n", no_wrap=True).join(lines_of(picture, console.width - 1)), refresh=True)
            if picture.state in ("ended", "killed"):
                return picture
            time.sleep(EVERY_S)
            file.read_on()
