"""Where the documents come from and how one is read.

Knows folders, gzip and encodings; knows nothing of sections or entities. The source only lists, lazily and in one fixed
order; opening and decoding is `read`, called once per document, so that a document that cannot be read fails alone.
"""

from __future__ import annotations

import fnmatch
import gzip
import os
import stat
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import IO, TypedDict

KINDS = {".txt": "txt", ".md": "md", ".rst": "rst", ".html": "html", ".htm": "html", ".py": "py"}
MAX_BYTES = 64 * 2**20  # of one document, unpacked: a gzip bomb must end as an error, not as a dead machine

TOPIC = "pydoc:"  # marks the texts that live inside `pydoc_data.topics`, which have no file of their own
# Not documentation of the library: tests, programs that come with it, settings of its build; and of `encodings` the
# character tables, which repeat one generated sentence.
SKIPPED = (
    *("__pycache__", "site-packages", "pydoc_data", "test", "tests", "*/test", "*/tests", "*/_bundled", "*/idle_test"),
    *("idlelib", "lib2to3", "config-*", "_sysconfigdata*"),
    *("encodings/cp*.py", "encodings/iso*.py", "encodings/koi*.py", "encodings/mac_*.py"),
)


class Document(TypedDict):
    """One item of the pipeline: the name it goes by in the graph, and where it is."""

    document: str
    path: Path


@dataclass(frozen=True)
class Text:
    """A document, decoded. `kind` says which markup it is in; `encoding` how its bytes were understood."""

    kind: str
    encoding: str
    content: str


class DocumentError(ValueError):
    """A document that cannot be used; the others can."""


class UnreadableDocument(DocumentError):
    """No permission, not a regular file, a damaged gzip stream."""


class EmptyDocument(DocumentError):
    """Nothing in it, or nothing but markup and blanks."""


class BinaryDocument(DocumentError):
    """Not text: it holds NUL bytes."""


class DocumentTooLarge(DocumentError):
    """More than `MAX_BYTES` when unpacked."""


def find_documents(folder: str | Path | None = None) -> Iterator[Document]:
    """The documents below `folder`, or those that this Python carries.

    A wrong folder is an error here and now, before anything starts; everything below it is found lazily.
    """
    if folder is None:
        return python_documents()
    root = Path(folder)
    if root.is_file():
        return iter([_document(root, root.name)])
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    found = _walk(root, root)
    first = next(found, None)
    if first is None:
        raise ValueError(f"no documents below {root}: looked for {', '.join(KINDS)}, plain or with .gz")
    return chain([first], found)


def python_documents() -> Iterator[Document]:
    """The language reference's topics (what `help("with")` shows), then the modules of the standard library."""
    try:
        topics = import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        topics = {}
    for name in sorted(topics):
        yield {"document": f"topics/{name}", "path": Path(TOPIC + name)}
    library = Path(sysconfig.get_path("stdlib"))
    for document in _walk(library, library, SKIPPED):
        # Packages without a word in their __init__.py are normal here, in a folder of documents they are a mistake.
        path = document["path"]
        if path.suffix == ".py" and path.is_file() and path.stat().st_size:
            yield document


def read(path: Path) -> Text:
    """Read and decode one document.

    Raises:
        UnreadableDocument, EmptyDocument, BinaryDocument, DocumentTooLarge: by what is wrong with it.
    """
    if str(path).startswith(TOPIC):
        return Text("rst", "utf-8", import_module("pydoc_data.topics").topics[str(path).removeprefix(TOPIC)])
    data = _bytes(path)
    encoding, content = decode(data)
    # Text written on Windows and on old Macs ends its lines otherwise; the splitters know "\n" alone.
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if not content.strip():
        raise EmptyDocument(f"{path} is empty" if not data else f"{path} holds nothing but blanks")
    return Text(kind_of(path.name) or "txt", encoding, content)


def decode(data: bytes) -> tuple[str, str]:
    """(encoding, text): a byte order mark decides, then UTF-8 if it fits; Latin-1 fits everything."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return encoding, data.decode(encoding, errors="replace")
    if b"\0" in data:
        raise BinaryDocument(f"not text: NUL byte at offset {data.index(0)}")
    try:
        return "utf-8", data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1", data.decode("latin-1")


def kind_of(name: str) -> str | None:
    """The markup that a file name promises, None for a file that is no document."""
    return KINDS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _bytes(path: Path) -> bytes:
    try:
        # Opening a named pipe would wait for its writer forever, and no cancellation reaches an open().
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableDocument(f"{path} is not a regular file")
        with _open(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableDocument(f"cannot read {path}: {error}") from error
    if len(data) > MAX_BYTES:
        raise DocumentTooLarge(f"{path} has more than {MAX_BYTES:,} bytes")
    return data


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _walk(root: Path, folder: Path, skip: Sequence[str] = ()) -> Iterator[Document]:
    """Depth first, sorted by name, whatever order the file system keeps; links to folders are not followed (cycles)."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        # Not passed over in silence: the folder itself becomes an item, which then fails with the reason.
        yield _document(folder, os.path.relpath(folder, root) + "/")
        return
    for entry in entries:
        name = Path(entry.path).relative_to(root).as_posix()
        if any(fnmatch.fnmatch(name, pattern) for pattern in skip):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path), skip)
        elif kind_of(entry.name) and not _leads_to_folder(entry):
            yield _document(Path(entry.path), name)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where nobody may look: its document fails, with the reason
        return False


def _document(path: Path, name: str) -> Document:
    # File names are bytes: one that is not UTF-8 gets a name that can be stored and printed, its path stays as it is.
    return {"document": os.fsencode(name).decode("utf-8", "backslashreplace"), "path": path}
