"""The example's reading half: which documents there are, how one is read, how it is cut into sections."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from examples.knowledge_graph.documents import (
    MAX_BYTES,
    BinaryDocument,
    DocumentTooLarge,
    EmptyDocument,
    Text,
    UnreadableDocument,
    find_documents,
    read,
)
from examples.knowledge_graph.sections import MAX_SECTION, Section, pieces, split


def names(folder: Path) -> list[str]:
    return [document["document"] for document in find_documents(folder)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_folder_is_walked_in_one_order_whatever_its_depth(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.rst.gz", "c.HTML", "d.py", "a.jpg", "a/e.tar.gz"):
        write(tmp_path / name, "x")
    assert names(tmp_path) == ["a/b/c.rst.gz", "a/z.md", "b.txt", "c.HTML", "d.py"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b.txt", "x")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert names(tmp_path) == ["a/b.txt"]


def test_a_link_that_leads_to_itself_is_a_document_that_cannot_be_read_and_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "z.txt", "x")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert names(tmp_path) == ["loop.txt", "z.txt"]
    with pytest.raises(UnreadableDocument, match=r"cannot read .*loop\.txt"):
        read(tmp_path / "loop.txt")


def test_a_single_file_is_a_corpus_of_one(tmp_path: Path) -> None:
    assert names(write(tmp_path / "a.md", "x")) == ["a.md"]


def test_a_wrong_folder_is_an_error_before_the_first_document(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_documents(tmp_path / "absent")
    with pytest.raises(ValueError, match="no documents below"):
        find_documents(tmp_path)


def test_a_folder_that_cannot_be_listed_becomes_an_item_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "b.txt", "x")
    write(tmp_path / "c.txt", "x")
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(find_documents(tmp_path))
    assert [document["document"] for document in found] == ["a/", "c.txt"]
    with pytest.raises(UnreadableDocument):
        read(found[0]["path"])


def test_a_file_name_that_is_not_utf8_gets_a_printable_name(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(path)).write_text("Linux")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (document,) = find_documents(tmp_path)
    assert document["document"] == "caf\\xe9.txt"
    assert read(document["path"]).content == "Linux"


def test_the_default_corpus_comes_with_python_and_can_be_read() -> None:
    found = list(find_documents())
    assert len(found) >= 500
    assert found[0]["document"].startswith("topics/")
    assert {"asyncio/events.py", "json/__init__.py"} <= {document["document"] for document in found}
    for document in found[::20]:
        assert split(read(document["path"]))


@pytest.mark.parametrize(
    ("data", "encoding", "content"),
    [
        ("Größe".encode(), "utf-8", "Größe"),
        ("Größe".encode("utf-8-sig"), "utf-8-sig", "Größe"),
        ("Größe".encode("utf-16"), "utf-16", "Größe"),
        ("Größe".encode("latin-1"), "latin-1", "Größe"),
        (b"a\r\nb\rc", "utf-8", "a\nb\nc"),
    ],
)
def test_encodings_are_recognised(tmp_path: Path, data: bytes, encoding: str, content: str) -> None:
    assert read(write(tmp_path / "a.txt", data)) == Text("txt", encoding, content)
    assert read(write(tmp_path / "a.md.gz", gzip.compress(data))) == Text("md", encoding, content)


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.txt", b"", EmptyDocument),
        ("a.txt", b" \n\t\n", EmptyDocument),
        ("a.txt", b"abc\0def", BinaryDocument),
        ("a.txt.gz", b"not compressed", UnreadableDocument),
        ("a.txt.gz", gzip.compress(os.urandom(4000))[:2000], UnreadableDocument),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-8] + b"\0" * 8, UnreadableDocument),
        ("a.txt.gz", gzip.compress(b" " * (MAX_BYTES + 1), mtime=0), DocumentTooLarge),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, name: str, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(write(tmp_path / name, data))


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UnreadableDocument, match="regular file"):
        read(tmp_path / "a.txt")


def test_a_dangling_link_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("nowhere")
    (document,) = find_documents(tmp_path)
    with pytest.raises(UnreadableDocument):
        read(document["path"])


def test_underlined_titles_begin_sections() -> None:
    text = (
        ".. SPDX-License-Identifier: GPL\n\n=====\nFirst\n=====\n\nOne.\n\n.. note:: Two.\n\nSecond\n------\nThree.\n"
    )
    assert split(Text("rst", "utf-8", text)) == [Section("First", "One.\n\n Two."), Section("Second", "Three.")]


def test_markdown_headings_begin_sections_but_not_inside_a_fence() -> None:
    text = "intro\n# One\n`code` [text](http://a.b/c)\n```\n# comment\n```\nTwo\n===\nend\n"
    assert split(Text("md", "utf-8", text)) == [
        Section("", "intro"),
        Section("One", "``code`` text http://a.b/c\n# comment"),
        Section("Two", "end"),
    ]


def test_html_loses_its_markup_and_scripts() -> None:
    text = "<title>T</title><script>if (a<b) x()</script><h1>One &amp; <i>two</i>¶</h1><p>Use <code>f()</code>.</p>"
    assert split(Text("html", "utf-8", text)) == [Section("One & two", "Use ``f()``.")]


def test_html_without_text_is_empty() -> None:
    with pytest.raises(EmptyDocument, match="markup"):
        split(Text("html", "utf-8", "<html><style>p {}</style><p></p></html>"))


@pytest.mark.parametrize("broken", ["<a ", "<!--", "<![CDATA[", "<script>x", "<?"])
def test_broken_html_costs_time_in_proportion_to_its_size(broken: str) -> None:
    # The parser alone is quadratic here: these took it from minutes to hours.
    text = "<p>before</p>" + broken * 200_000
    assert split(Text("html", "utf-8", text))[0].text.startswith("before")


def test_a_long_script_does_not_swallow_the_rest_of_the_page() -> None:
    text = f"<p>before</p><script>{'x' * 200_000}</script><p>after</p>"
    assert [section.text.split() for section in split(Text("html", "utf-8", text))] == [["before", "after"]]


def test_python_gives_its_docstrings_by_what_stands_at_the_top() -> None:
    source = '"""Module."""\n\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n\ndef g(): pass\n'
    assert split(Text("py", "utf-8", source)) == [Section("", "Module."), Section("A", "Class.\n\nMethod.")]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("# A comment\nx = 1\n", "A comment"),
        ("print 'old'\n#! Python 2\n", "Python 2"),
        ("x = 1\n", "x = 1"),
        ("(" * 5000, "(" * 5000),
        ('"""Half a \\ud800 pair."""', "Half a ? pair."),
    ],
)
def test_python_without_docstrings_or_with_errors_still_has_text(source: str, text: str) -> None:
    assert [section.text for section in split(Text("py", "utf-8", source))] == [text]


def test_a_document_of_directives_only_is_kept() -> None:
    assert split(Text("rst", "utf-8", ".. maintainers-include::\n"))[0].text == ".. maintainers-include::"


@pytest.mark.parametrize("kind", ["txt", "md", "rst", "html", "py"])
@pytest.mark.parametrize("unit", ["word ", "x", "\n.", "`a` "])
def test_sections_are_bounded_and_lose_nothing(kind: str, unit: str) -> None:
    text = unit * 500_000
    sections = split(Text(kind, "utf-8", text))
    assert max(len(section.text) for section in sections) <= MAX_SECTION
    kept = sum(section.text.count(unit.strip()[-1]) for section in sections)
    assert kept >= text.count(unit.strip()[-1])


def test_pieces_end_where_a_reader_would_pause() -> None:
    assert list(pieces("one two three four", 11)) == ["one two", "three four"]
    assert list(pieces("aaaa\n\nbb cc\ndd", 12)) == ["aaaa\n\nbb cc", "dd"]
    assert list(pieces("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
