"""What kgas_async gives to other programs, and takes from them, in formats and protocols that are not its own.

`kgas_async.export.mcp` speaks the Model Context Protocol; it needs the extra ``mcp``. `lineage`, `prov`, `trace`,
`report` and `otel` read evidence, `prometheus` takes figures; `report` and `otel` need the extras of those names.
Nothing is imported here, so that each module costs only those who use it.
"""
