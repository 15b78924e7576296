"""From a folder of documents to a ranked knowledge graph: the whole job, on asyncio and on trio.

    kgas-async run examples.knowledge_graph:pipeline                          # the documentation inside this Python
    kgas-async run examples.knowledge_graph:pipeline --input ~/notes --backend trio --evidence run.jsonl

    documents.py   which documents there are; reading one      facts.py       what one document contributes
    sections.py    cutting it by its headings                  graph_file.py  the graph in SQLite
    extractor.py   entities, by a legacy class of 2012         rank.py        PageRank, by networkx
    tools.py       all of these as tools, the graph as a service

The result is the same in whatever order the documents are processed. A document that is empty, binary, damaged or
unreadable fails alone, with its reason; the graph then holds the others.
The graph goes to `$KGAS_GRAPH`, else to `knowledge_graph.db` here. `--input` takes a folder of .txt .md .rst .html .py
files, plain or with .gz. Needs networkx, numpy and scipy: python -m pip install -e '.[example]'.
"""

from kgas_async import Phase, Pipeline

from .documents import Document, find_documents
from .tools import Finish, GraphStore, Link, extract, load, merge, rank_entities, split

__all__ = ["graph", "pipeline"]

graph = GraphStore()  # opens nothing: the session that runs the pipeline starts it

pipeline = Pipeline(
    "knowledge_graph",
    Phase("text", load),  # takes the item's field `path`
    Phase("sections", split, expand="section"),  # one document → many sections
    Phase("entities", extract, bind={"text": "section.text", "title": "section.title"}),  # per section
    Phase("facts", merge, bind={"encoding": "text.encoding"}, collect="section"),  # per document again
    Phase("links", Link(graph)),
    Phase("graph", Finish(graph), bind={"documents": "links"}, collect=True),  # once per run, from here on
    Phase("ranking", rank_entities, bind={"path": "graph.path"}),
    item=Document,
    key="document",
    source=find_documents,
)
