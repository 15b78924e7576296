"""The example's legacy class: what it finds, and the manners that make an adapter necessary."""

from __future__ import annotations

import pytest

from examples.knowledge_graph.extractor import LegacyExtractor


def found(text: str, title: str = "") -> dict[str, str]:
    result = LegacyExtractor().execute(text=text, title=title)
    assert result["status"] == "ok"
    return {entity["name"]: entity["kind"] for entity in result["entities"]}


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("see the Memory Management Unit of it", {"Memory Management Unit": "name"}),
        ("in The Linux Kernel and", {"Linux Kernel": "name"}),
        ("calls foo_bar() and os.path.join() then", {"foo_bar": "code", "os.path.join": "code"}),
        ("set CONFIG_SMP or __init__ there", {"CONFIG_SMP": "code", "__init__": "code"}),
        ("use :mod:`asyncio` and :func:`~os.path.join()`", {"asyncio": "code", "os.path.join": "code"}),
        ("a :ref:`title of it <some_label>` here", {"some_label": "code"}),
        ("the ``struct_page`` and ``not a name = 1``", {"struct_page": "code"}),
        ("as `they say <https://www.Example.org/x?y>`_ now", {"example.org": "site"}),
        ("as at https://lwn.net/Articles/1/.", {"lwn.net": "site"}),
        ("in Documentation/admin-guide/sysctl.rst there", {"admin-guide/sysctl": "path"}),
        ("write to /proc/sys/vm/swappiness now", {"/proc/sys/vm/swappiness": "path"}),
        ("by RFC 2822, RFC2822 and RFC-2822", {"RFC 2822": "standard"}),
        ("many CPUs and SoCs", {"CPU": "name", "SoC": "name"}),
        ("visits Café Müller in Köln", {"Café Müller": "name", "Köln": "name"}),
        ("mail me@python.org or x.py file.rst", {}),
        ("the word None and a Value", {}),
    ],
)
def test_what_names_something_is_found(text: str, entities: dict[str, str]) -> None:
    got = found(text)
    assert entities.items() <= got.items()
    if not entities:
        assert got.keys() <= {"x.py"}


def test_a_capital_that_only_begins_a_sentence_names_nothing() -> None:
    assert found("Sometimes it fails. Usually not.\n\nPerhaps\nLinux helps; Linux\nwins.") == {"Linux": "name"}


def test_the_heading_counts_and_leads() -> None:
    result = LegacyExtractor().execute(text="about DMA and GPIO", title="The GPIO way")
    assert [(entity["name"], entity["count"]) for entity in result["entities"]] == [("GPIO", 2), ("DMA", 1)]


def test_the_same_text_gives_the_same_result_on_an_instance_used_before() -> None:
    extractor = LegacyExtractor()
    first = extractor.execute(text="the GPIO of Linux", title="")
    extractor.execute(text="something else about DMA", title="Other")
    assert extractor.execute(text="the GPIO of Linux", title="") == first


@pytest.mark.parametrize("text", [None, b"bytes", "\x01\x02\x03" * 100])
def test_errors_are_returned_not_raised(text: object) -> None:
    result = LegacyExtractor().execute(text=text, title="")
    assert result["status"] == "error"
    assert result["message"]


@pytest.mark.parametrize(
    "unit", ["A", "A ", "a_", "a.", "`", "``a", ":a:`", "https://a", "Aa-", "/proc/", "A of ", "_"]
)
def test_no_text_of_a_section_is_slow(unit: str) -> None:
    # A pattern that backtracks takes minutes for one of these; all of them together take a moment.
    LegacyExtractor().execute(text=(unit * 8000)[:8000], title="")
