"""The development sessions: `nox -l` lists them, `nox` runs lint, types and tests.

Versions, groups and Pythons are read from pyproject.toml; nothing is listed twice.
"""

from __future__ import annotations

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False  # a session for a Python that is not here is skipped, and says so


def install(session: nox.Session, *groups: str) -> None:
    """Installs the project with what its tests and example import, and the named dependency groups."""
    session.install("-e", ".[all]", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules, then format. Takes `-- --fix` to mend what it can."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix")
        session.run("ruff", "format")
    else:
        session.run("ruff", "check")
        session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright over the package and tests/typing."""
    install(session, "types")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite; KGAS_TEST_BACKENDS chooses the event loops."""
    install(session, "test", "types")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def seeds(session: nox.Session) -> None:
    """The suite in virtual time, under ten orders of tasks."""
    install(session, "test", "types")
    for seed in range(1, 11):
        session.env["KGAS_TEST_SEED"] = str(seed)
        session.run("python", "-m", "pytest", "-q", "-m", "anyio and not slow and not real_time")


@nox.session
def crash(session: nox.Session) -> None:
    """Runs with a journal, killed at 300 moments on each event loop; and each of its system calls failing."""
    install(session, "test")
    session.env["KGAS_CRASH_MOMENTS"] = "300"
    session.env["KGAS_TEST_BACKENDS"] = "asyncio,trio,uvloop"
    files = ("tests/test_journal_crash.py", "tests/test_journal_system.py")
    session.run(
        "python", "-m", "pytest", "-q", "-m", "slow or not slow", "-o", "faulthandler_timeout=3600", *files,
        *session.posargs,
    )  # fmt: skip


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site into build/docs, without warnings; then its links, names and search."""
    install(session, "test", "docs")
    session.run("sphinx-build", "-q", "-E", "-W", "--keep-going", "-b", "html", "docs", "build/docs")
    session.env["KGAS_TEST_SITE"] = "build/docs"
    session.run("python", "-m", "pytest", "-q", "-m", "", "tests/test_site.py", "tests/test_docstrings.py")


@nox.session
def bench(session: nox.Session) -> None:
    """The measurements, against plain loops and aiometer in the same run."""
    install(session, "test", "bench")
    session.run("python", "-m", "tests.bench", *session.posargs)
