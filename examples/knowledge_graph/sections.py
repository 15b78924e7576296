"""Cuts a text into sections: by headings where its markup has them, by docstrings in Python, by size always.

Takes and returns plain values. The markup is only stripped as far as the entity extractor needs: what names something
(``code``, :role:`targets`, links) stays recognisable, the rest becomes prose.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser

from .documents import EmptyDocument, Text

MAX_SECTION = 8_000  # characters: one line of 50 MB becomes many sections; the extractor never sees more at once
MAX_LINES = 2_000  # gathered before they become a piece: 25 million empty lines must not be a list
MAX_TAG = 2**16  # characters of HTML; a tag or comment longer than this is dropped (a picture in a link, a broken page)
MAX_SYNTAX_TREE = 2 * 2**20  # characters of Python; a tree takes a hundred times the memory of its source

# Documents may hold invalid escapes ("\d"); those warnings are not this program's. They carry the name given to parse.
DOCUMENT_NAME = "<document>"
warnings.filterwarnings("ignore", module=re.escape(DOCUMENT_NAME))

_UNDERLINE = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}\s*")
_MARKDOWN_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*\s*")
_MARKDOWN_UNDERLINE = re.compile(r"(?:={3,}|-{3,})\s*")
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\(([^()\s]{1,500})[^()\n]{0,100}\)")
_MARKDOWN_CODE = re.compile(r"(?<!`)`([^`\n]{1,200})`(?!`)")
_RST_DIRECTIVE = re.compile(r"^[ \t]*\.\. (?:[\w:-]+::|_[^:\n]+:|\[[^\]\n]*\]|\|[^|\n]+\|(?: [\w-]+::)?)", re.MULTILINE)
_RST_COMMENT = re.compile(r"^[ \t]*\.\.(?: (?![\w:-]+::)[^\n]*)?$", re.MULTILINE)
_RST_OPTION = re.compile(
    r"^[ \t]*:(?:alt|caption|depth|glob|hidden|local|maxdepth|name|numbered|widths):.*$", re.MULTILINE
)
_COMMENT = re.compile(r"^[ \t]*#!?[ \t]?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A piece of a document, at most `MAX_SECTION` characters of it, under the heading it stands under ("" if none)."""

    title: str
    text: str


def split(text: Text) -> list[Section]:
    """The sections of a document, in order.

    Raises:
        EmptyDocument: for HTML in which nothing is left once the markup is gone.
    """
    parts = {"html": _html, "md": _markdown, "py": _python}.get(text.kind, _underlined)(text.content)
    sections = [Section(title[:200], piece) for title, body in parts for piece in pieces(body)]
    if not sections and text.kind != "html":
        # An index that is all directives still is a document; it merely names nothing.
        sections = [Section("", piece) for piece in pieces(text.content)]
    if not sections:
        raise EmptyDocument("nothing but markup")
    return sections


def pieces(text: str, size: int = MAX_SECTION) -> Iterator[str]:
    """`text` in pieces of at most `size`, cut between paragraphs, else lines, else words, else anywhere."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            for boundary in ("\n\n", "\n", " "):
                # Not in the first half: many tiny pieces would cost more than one unlucky cut.
                cut = text.rfind(boundary, start + size // 2, end)
                if cut != -1:
                    end = cut
                    break
        piece = text[start:end].strip()
        if piece:
            yield piece
        start = end


def _lines(content: str) -> Iterator[str]:
    """One after the other: neither a list of them all, nor the copy at four bytes a character that StringIO keeps."""
    start = 0
    while (end := content.find("\n", start)) != -1:
        yield content[start:end]
        start = end + 1
    yield content[start:]


def _underlined(content: str) -> Iterator[tuple[str, str]]:
    """reStructuredText, and plain text, which people structure the same way: a line, and one of its length below it."""
    title, body, previous = "", list[str](), ""
    for line in _lines(content):
        rule = len(line) < MAX_SECTION and _UNDERLINE.fullmatch(line)
        if len(body) > MAX_LINES:
            yield title, _rst("\n".join(body[:-1]))
            del body[:-1]  # the last may turn out to be a heading
        if rule and previous.strip() and len(line.rstrip()) >= len(previous.rstrip()):
            body.pop()
            yield title, _rst("\n".join(body))
            title, body = previous.strip(), []
        elif not rule:  # else a line above a title, or a transition: nothing to read
            body.append(line)
        previous = "" if rule else line
    yield title, _rst("\n".join(body))


def _rst(text: str) -> str:
    return _RST_OPTION.sub("", _RST_COMMENT.sub("", _RST_DIRECTIVE.sub("", text)))


def _markdown(content: str) -> Iterator[tuple[str, str]]:
    """`# Heading` and the underlined kind; a `#` inside a fence is a comment in somebody's code."""
    title, body, fenced = "", list[str](), False
    for line in _lines(content):
        if len(body) > MAX_LINES:
            yield title, "\n".join(body[:-1])
            del body[:-1]
        if line.lstrip()[:3] in ("```", "~~~"):
            fenced = not fenced
            continue
        heading = None if fenced or len(line) > 500 else _MARKDOWN_HEADING.fullmatch(line)
        underlined = not fenced and body and body[-1].strip() and _MARKDOWN_UNDERLINE.fullmatch(line[:500])
        if heading or underlined:
            following = heading[1] if heading else body.pop().strip()
            yield title, "\n".join(body)
            title, body = following, []
        else:
            # The extractor knows reStructuredText's ``literals``; of a link remain its text and its target.
            body.append(line if fenced else _MARKDOWN_CODE.sub(r"``\1``", _MARKDOWN_LINK.sub(r"\1 \2", line)))
    yield title, "\n".join(body)


def _python(content: str) -> Iterator[tuple[str, str]]:
    """One section for the module and one for each class or function at its top, with the docstrings inside.

    Without docstrings the comments, without comments the source itself.
    """
    found = False
    for title, body in _docstrings(content):
        found = True
        yield title, body
    if not found:
        comments = "\n".join(match[1] for match in _COMMENT.finditer(content)).strip()
        yield "", comments or content


def _docstrings(content: str) -> Iterator[tuple[str, str]]:
    if len(content) > MAX_SYNTAX_TREE:
        return
    try:
        tree = ast.parse(content, DOCUMENT_NAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # Python 2, templates, broken files: their comments are still worth reading
    documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if module := ast.get_docstring(tree):
        yield "", _storable(module)
    for top in tree.body:
        if isinstance(top, documented):
            texts = [ast.get_docstring(node) for node in ast.walk(top) if isinstance(node, documented)]
            if body := "\n\n".join(text for text in texts if text):
                yield top.name, _storable(body)


def _storable(text: str) -> str:
    """A literal may spell out half a surrogate pair, "\\ud800", which nothing that stores or prints text will take."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Stripper(HTMLParser):
    """Gathers (title, body) pairs: a heading starts a section, <code> becomes ``code``, scripts and styles go."""

    HEADINGS = frozenset(["title", "h1", "h2", "h3", "h4", "h5", "h6"])
    HIDDEN = frozenset(["script", "style", "template"])
    CODE = frozenset(["code", "tt", "kbd"])
    BLOCKS = frozenset(["p", "div", "li", "tr", "td", "th", "dt", "dd", "pre", "br", "table", "ul", "ol", "blockquote"])

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[list[str], list[str]]] = [([], [])]
        self._in_heading = False
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HEADINGS:
            self._in_heading = True
            self.sections.append(([], []))
        elif tag in self.HIDDEN:
            self._hidden += 1
        elif tag in self.CODE and not self._in_heading:
            self._put("``")
        elif tag in self.BLOCKS:
            self._in_heading = False  # a heading that nobody closed must not swallow the page
            self._put("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HEADINGS:
            self._in_heading = False
        elif tag in self.HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in self.CODE and not self._in_heading:
            self._put("``")
        elif tag in self.BLOCKS:
            self._put("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._put(data)

    def _put(self, data: str) -> None:
        self.sections[-1][0 if self._in_heading else 1].append(data)


def _html(content: str) -> Iterator[tuple[str, str]]:
    parser = _Stripper()
    dropping = False
    # In chunks, because the parser looks again and again at what has no end: a million "<a " took it hours.
    for start in range(0, len(content), MAX_TAG):
        chunk = content[start : start + MAX_TAG]
        if dropping:
            _, end, chunk = chunk.partition(">")
            dropping = not end
        parser.feed(chunk)
        if len(parser.rawdata) > MAX_TAG and parser.cdata_elem:
            parser.rawdata = parser.rawdata[-64:]  # inside a script: the beginning of its end tag may be there
        elif len(parser.rawdata) > MAX_TAG:
            parser.rawdata, dropping = "", True
    parser.close()
    for title, body in parser.sections:
        # Sphinx puts a pilcrow link behind each heading.
        yield " ".join("".join(title).replace("¶", "").split()), "".join(body).replace("¶", "")
