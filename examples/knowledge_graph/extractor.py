"""The legacy class: an entity extractor as somebody wrote it in 2012, blocking, stateful, and not to be changed.

It knows nothing of async, pipelines or this package. What its callers must know, because it will not tell them:

* it keeps the text it works on in `self`, so two threads must never use one instance at a time;
* it takes keyword arguments and returns a dict; an error is a dict too, with "status" "error" and a "message".

`tools.py` says both to the adapter, in one declaration.
"""

import re

STOP_WORDS = frozenset(
    """a about above according added additional after again all allows also although always an and another any apr april
    are argument arguments as at aug august author authors available bar based be because been before below between
    both but by call called calls can cannot case changed changelog check class classes code com compatible contact
    content copying copyright corp could create current date dec december default depending depends deprecated
    description details did do document documentation does during each eggs either else email enable end ensure even
    every example examples except exception exceptions expected extra false feb february file files finally first
    fix following foo for format friday from function functions further general genindex get gfdl given gives gmt
    gpl has have he here how however html http https i id if implements important in inc index input instead into
    introduction is it its jan january jul july jun june just last later let license licensed like list long ltd
    main maintainer make many mar march may maybe method methods module modules monday more most must my name new
    next no node none nor normally not note notes nov november now number object objects oct october of official ok
    old on once one only optional options or org other otherwise our out output overview parameter parameters part
    path perform please possible properties property provide provided provides raise raised raises read reference
    references remember required reserved result return returned returning returns rights rst same saturday section
    see self sep sept september set several she should show similar simple simply since size so some something
    source spam specify standard start string strings subclass subclasses such summary sunday support supported
    supports take test tests text than that the their them then there therefore these they this those though through
    thursday thus title to todo translator true try tuesday two txt type types undefined under unless unlike until
    up upon usage use used user uses using usually value values version very warning warranty was we wednesday well
    were what when whenever where whether which while who why will with within without would write www xxx yes yet
    you your""".split()
)

MAX_NAME = 80  # characters; what is longer is a sentence or a hexadecimal dump
MAX_GARBAGE = 0.3  # share of characters that no text has

_TOKEN = re.compile(
    r"""
      :[a-z][a-z:+-]{0,30}:`(?P<role>[^`]{1,120})`              # :mod:`asyncio`, :ref:`a title <label>`
    | ``(?P<literal>[^`\n]{1,80})``                             # ``PyObject``
    | `[^`<]{0,120}<(?P<link>[^`<>\s]{1,120})>`                 # `text <target>`_
    | https?://(?P<host>[\w.-]{3,80})[^\s<>"')\]]*              # a link is about the site it leads to
    | (?P<path>(?:\b[Dd]ocumentation|/(?:proc|sys|dev|etc|usr|var))/[\w./+-]{2,80})
    | \b(?P<standard>(?:PEP|RFC|CVE|ISO)[\s-]{0,4}[0-9][0-9-]*)  # RFC 2822, RFC2822 and RFC-2822 are one
    | (?P<call>\b[A-Za-z_][\w.]{0,79})\(\)                      # foo_bar(), os.path.join()
    | (?P<dotted>\b[A-Za-z_]\w{1,40}(?:\.[A-Za-z_]\w{1,40}){1,5}\b)
    | (?P<snake>\b(?=[A-Za-z_]{0,40}_\w)[A-Za-z_]\w{2,79}\b)    # CONFIG_X, sk_buff, __enter__
    | (?P<words>\b[A-ZÀ-ÖØ-Þ][^\W_]*(?:[-+][^\W_]+)*            # Linux, Café Müller, Memory Management Unit
                 (?:[ ](?:of[ ]|the[ ])?[A-ZÀ-ÖØ-Þ][^\W_]+(?:-[^\W_]+)*){0,3})
    """,
    re.VERBOSE,
)
_IDENTIFIER = re.compile(r"~?!?([A-Za-z_][\w-]*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?")
_TARGET = re.compile(r".*<([^<>]+)>", re.DOTALL)
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")
_FILE_SUFFIX = re.compile(r"\.(?:rst|txt|html?|md|gz)(?=\.|$)")


class LegacyExtractor(object):
    def __init__(self):
        self._text = None
        self._found = None

    def execute(self, **kwargs):
        """Takes `text` and `title`; returns {"status": "ok", "entities": [{"name", "kind", "count"}, ...]}.

        The most frequent come first, equally frequent ones as they appear.
        """
        text = kwargs.get("text")
        if not isinstance(text, str):
            return {"status": "error", "message": "text must be a string, not %s" % type(text).__name__}
        if len(_UNPRINTABLE.findall(text)) > MAX_GARBAGE * max(len(text), 1):
            return {"status": "error", "message": "this does not look like text"}
        self._found = {}
        # The heading first: among equally frequent entities the first seen leads, and a heading says what it is about.
        for self._text in (kwargs.get("title") or "", text):
            self._scan()
        entities = [{"name": name, "kind": kind, "count": count} for (name, kind), count in self._found.items()]
        entities.sort(key=lambda entity: -entity["count"])
        return {"status": "ok", "entities": entities}

    def _scan(self):
        for match in _TOKEN.finditer(self._text):
            group = match.lastgroup
            handle = getattr(self, "_on_" + group)
            handle(match.group(group), match.start())

    def _on_role(self, value, _start):
        target = _TARGET.match(value)
        self._on_literal(target.group(1) if target else value, _start)

    def _on_literal(self, value, _start):
        value = value.strip()
        identifier = _IDENTIFIER.fullmatch(value)
        if identifier:
            self._add(identifier.group(1), "code")
        elif "/" in value and " " not in value:
            self._on_path(value, _start)

    def _on_link(self, value, start):
        if "://" in value:
            self._on_host(value.split("://", 1)[1].split("/", 1)[0], start)
        elif value.startswith("mailto:") or "@" in value:
            pass
        else:
            self._on_literal(value.rstrip("_"), start)

    def _on_host(self, value, _start):
        value = value.lower().rstrip(".")
        self._add(value[4:] if value.startswith("www.") else value, "site")

    def _on_path(self, value, _start):
        # "Documentation/x/index.rst", "documentation/x/index" and "../x/index.rst" lead to one place.
        value = _FILE_SUFFIX.sub("", value.strip("./,;:"))
        if value.lower().startswith("documentation/"):
            value = value[len("documentation/") :]
        elif value.split("/")[0] in ("proc", "sys", "dev", "etc", "usr", "var"):
            value = "/" + value
        self._add(value, "path")

    def _on_call(self, value, _start):
        self._add(value.strip("."), "code")

    def _on_standard(self, value, _start):
        self._add("%s %s" % (value[:3], value[3:].strip(" \t\n-")), "standard")

    def _on_dotted(self, value, start):
        # Parts of addresses and paths, hosts and file names look the same.
        if self._text[max(0, start - 1) : start] in ("@", "/", "-"):
            return
        if not value.endswith((".org", ".com", ".net")) and not _FILE_SUFFIX.search(value):
            self._add(value, "code")

    def _on_snake(self, value, _start):
        self._add(value, "code")

    def _on_words(self, value, start):
        words = value.split(" ")
        while words and words[0].lower() in STOP_WORDS:
            words.pop(0)
            start = -1  # what follows stands in mid-sentence, so its capital means something
        while words and words[-1].lower() in STOP_WORDS:
            words.pop()
        if not words:
            return
        if len(words) == 1 and words[0][1:].islower() and self._begins_sentence(start):
            return
        if words[-1].endswith("s") and words[-1][-2:-1].isupper():
            words[-1] = words[-1][:-1]  # CPUs, SoCs: a CPU, an SoC
        self._add(" ".join(words), "name")

    def _begins_sentence(self, start):
        if start < 0:
            return False
        before = self._text[max(0, start - 40) : start]
        stripped = before.rstrip()
        # A single line break is a wrapped line, an empty line a new paragraph.
        return not stripped or stripped[-1] in '.!?:;*-|>)=+#"' or before[len(stripped) :].count("\n") > 1

    def _add(self, name, kind):
        if len(name) < 3 and not (len(name) == 2 and name.isupper()):
            return
        if len(name) > MAX_NAME or name.lower() in STOP_WORDS or not any(c.isalpha() for c in name):
            return
        key = (name, kind)
        self._found[key] = self._found.get(key, 0) + 1
