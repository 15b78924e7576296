"""Writes `docs/cli.md` from the command line itself: ``python docs/make_cli.py``. A test holds that it was done."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kgas_async._cli import app

PAGE = Path(__file__).parent / "cli.md"

BEFORE = """\
# The command line

The extra `cli` has it: `python -m pip install -e ".[cli]"`. `python -m kgas_async` is the same as `kgas-async`.

<!-- Written by docs/make_cli.py from the commands themselves; change those, or that. -->

![The live view of a run](images/live.svg)

## What all commands have in common

- **Results go to standard output**, all else (progress, warnings, errors) to standard error. What is no terminal gets
  plain text, without colours and without anything that is painted anew. `NO_COLOR=1` leaves colours out everywhere.
  `--output -` is standard output too; for a file of that name give `./-`.
- **Width**: what would be wider than the terminal is cut (`status`) or wrapped (tables); where there is none, `COLUMNS`
  says how wide, else it is 120 (`evidence lineage`: 160). The plan that `check` prints is always whole.
- **`--json`** gives one JSON object on standard output, or, where it says so, one on each line; see [below](#json).
  With `run --json` what tools, sources and modules print goes to standard error, so that the object stands alone; what
  a module prints when it is imported always does with `check` and `tools`.
- **Errors are one line**: what was wrong, where, and the mend. `--traceback`, given to `kgas-async` (or to `run`
  and `check`), shows where an error came from.
- **A reader that goes** (`| head`, a pager that is left or killed) is no error: the rest of the output is dropped, a
  run goes on, and the exit code is what it would have been. A full disk is told, and is 1.
- **Completion**: `kgas-async --install-completion` for the shell that you are in.

| exit code | |
|---|---|
| 0 | all is well: all items succeeded, the evidence is intact |
| 1 | it ran, and something failed: some items, an entry point, the check of evidence |
| 2 | it could not start: a wrong command, a file that is missing, a pipeline that is none |
| 3 | `status`: the run was killed; `evidence verify`: intact, but not closed |
| 130, 143, 129 | ended by Ctrl-C (SIGINT), SIGTERM, SIGHUP |

A tool that ends a run by `SystemExit` gives it that code, but none that stands above: then it is 1.

## Signals

The first SIGINT, SIGTERM or SIGHUP of a `run` drains: no further items are begun, and those in flight have `--grace`
seconds to end; phases that run once per run, and have not begun, do not, also where the source is at its end (the line
of counts names them, and with `--journal` the same command runs them). It says which calls it waits for, and how old the oldest is. Then, or at the second signal, they are
cancelled. The third ends the process at once. Evidence and journal are whole after the first two, and readable after
the third and after `kill -9`: `kgas-async status` then says what was in flight. A signal that
is ignored (SIGHUP by `nohup`, SIGINT by a shell for what a script has in the background) stays ignored. Before the run
has begun a signal ends the process at once.

The live view changes nothing of the terminal that would have to be put right again, so it needs no care, however the
process ends.
"""

JSON = """\
## JSON

Of `run`:

| field | |
|---|---|
| `pipeline`, `run_id` | as in the evidence; `run_id` is null where the run did not begin |
| `exit_code`, `interrupted`, `error` | the code that it ends with; the signal, or null; the error that ended it, or null |
| `items` | counts: `total, succeeded, failed, timed_out, cancelled, rejected, skipped, reused` |
| `elapsed_s`, `drained` | seconds; whether the source was not taken to its end |
| `not_begun` | run-level phases that it did not come to, since it was interrupted, its source broke off, or `--on-error` ended it |
| `results`, `errors`, `missing` | of run-level phases, by name: values, `{type, message}`, how many items they lack |
| `failures`, `more_failures` | the first 1,000 items that did not succeed: `key, status, phase, tool, error`; how many more |
| `abandoned` | threads that were [left behind](glossary.md#abandon) and still ran at the end: how many, by tool |
| `code_changed` | phases of whose tools the journal has values of before their code changed: `phase, tool, changed` (`code` or `arguments`), `reused` (whether they were used, or it ran again) |
| `evidence`, `journal` | the files, or null |

Values that JSON has no form for are given as text. Where it could not start (exit code 2) there is no object, and the
reason is on standard error.

Of `status`, and of each line of `status --follow --json`:

| field | |
|---|---|
| `state` | `running`, `draining`, `ended`, `killed` |
| `session_id`, `run_id`, `pipeline`, `elapsed_s` | null where there is no run |
| `items` | `done, failed, cancelled, skipped, total, rate, eta_s`; `is_exact` is false where they were counted from calls |
| `phases` | of each `name, tool, level, done, failed, cancelled, skipped, reused, total, in_flight, running, rate, eta_s, p50_s, p95_s, waits, run_s, retries` |
| `in_flight` | by tool: `tool, count, oldest_s` |
| `limits`, `breakers`, `services` | those that have changed their state |
| `stalls`, `abandoned`, `retries` | stalls of the event loop; threads that were left behind; attempts that were repeated |
| `failures` | by kind, the latest first: `where, type, count, message, item, ago_s` |
| `process`, `calls`, `signal`, `queued` | the latest sample of the process; ended calls; the last signal |

Of the others: `evidence show` gives the [records](evidence.md#a-record) themselves, one a line; `evidence verify` the
fields of `EvidenceReport`; `evidence lineage`, `journal show`, `tools` all that they print and more.
"""


def page() -> str:
    """The page, as it is to be."""
    root: Any = typer.main.get_command(app)
    parts = [BEFORE]
    for path, command in _commands("kgas-async", root):
        parts.append(_section(path, command))
    return "\n".join([*parts, JSON])


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Those that do something, in the order of the help."""
    found = getattr(command, "commands", None)
    if found is None:
        yield path, command
        return
    for name, one in found.items():
        yield from _commands(f"{path} {name}", one)


def _section(path: str, command: Any) -> str:
    prose, _, examples = inspect.cleandoc(command.help or "").partition("Examples:")
    summary, *paragraphs = [" ".join(part.split()) for part in prose.strip().split("\n\n")]
    lines = [f"## {path}", "", summary, ""]
    for paragraph in paragraphs:
        lines += [textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False), ""]
    shown = [line.strip() for line in examples.splitlines() if line.strip()]
    lines += ["```console", *(f"$ {line}" for line in shown), "```", "", "| argument, option | |", "|---|---|"]
    lines += [_row(one) for one in command.params if one.name != "help"]
    return "\n".join(lines) + "\n"


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        flag = getattr(parameter, "is_flag", False)
        value = "" if flag else f" {parameter.metavar or 'VALUE'}"
        name = ", ".join(f"`{one}{value}`" for one in names)
    default = parameter.default
    told = "" if default in (None, False, True, ...) or callable(default) else f" (default: `{default}`)"
    if parameter.required:
        told = " (required)"
    cells = [name, f"{parameter.help or ''}{told}"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Write it."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
