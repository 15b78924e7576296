"""TOML pipelines with one mistake each: the message names the file, the line, the key and the mend.

In a case the wrong line is the one that ends in `#!`. What has no `[pipeline]` of its own stands below `HEAD`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from kgas_async import LoadError, load_pipeline

P = "tests.toml_pieces"
HEAD = f"""\
[pipeline]
name = "p"
source = "{P}:numbers"

[[phase]]
name = "twice"
tool = "{P}:double"
"""


class Case(NamedTuple):
    text: str
    key: str
    said: tuple[str, ...]  # what is wrong, and the mend
    line: int = 0  # unless a mark tells it


def case(name: str, text: str, key: str, *said: str, line: int = 0) -> object:
    return pytest.param(Case(dedent(text).lstrip("\n").replace("P:", f"{P}:"), key, said, line), id=name)


CASES = [
    # --- what is no TOML
    case("text_without_quotes", "[pipeline]\nname = papers #!\n", "name", "Invalid value", 'write "papers"'),
    case("true_of_python", "policy.isolated = True #!\n", "policy.isolated", "not TOML; write true"),
    case("none_of_python", "policy.timeout = None #!\n", "policy.timeout", 'write "none"'),
    case("unit_after_number", "policy.timeout = 30 s #!\n", "policy.timeout", "one key = value per line, and text in quotes"),
    case("quote_not_closed", 'expand = "part\nbatch = 3\n', "expand", "the text is not closed; add a quote", line=8),
    case("list_not_closed", 'after = ["a", "b"\nbatch = 3 #!\n', "batch", "the list is not closed; write ]"),
    case("table_not_closed", 'bind = { x = "y"\n', "bind", "the brackets are not closed", line=8),
    case("colon_for_equals", "batch: 3 #!\n", "batch", "a line is key = value; write = after the key"),
    case("backslashes", 'with.path = "C:\\data" #!\n', "with.path", "a backslash begins an escape; write the text in 'single quotes'"),
    case("header_not_closed", "[profile.prod #!\n", "profile.prod", "the brackets are not closed"),
    case("two_sources", '[pipeline]\nname = "p"\nsource = "P:numbers"\nsource = "P:upto" #!\n', "source", "is given twice; keep one of them"),
    case("pipeline_twice", '[pipeline]\nname = "p"\n[pipeline] #!\n', "pipeline", "begun twice; put its keys under one header"),
    # --- the top
    case("other_version", "version = 2 #!\n" + HEAD, "version", "format 2", "reads format 1: upgrade kgas-async", "version = 1"),
    case("version_as_text", 'version = "1" #!\n' + HEAD, "version", 'the number of the format, 1, not "1"'),
    case("misspelt_table", "[limit.openai] #!\nrate = 5\n", "limit", "no key of a pipeline's file", "did you mean 'limits'?"),
    case("other_file", '[project] #!\nname = "x"\n' + HEAD, "project", "no key of a pipeline's file, which has version, pipeline"),
    case("pipeline_is_a_list", '[[pipeline]] #!\nname = "p"\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline", "one pipeline: write [pipeline], with single brackets"),
    case("phase_is_a_table", '[pipeline]\nname = "p"\n[phase.twice] #!\ntool = "P:double"\n', "phase", "write [[phase]], with double brackets"),
    case("services_are_a_text", 'services = "graph" #!\n' + HEAD, "services", "is a table: write [services.NAME], not \"graph\""),
    # --- [pipeline]
    case("name_missing", '[pipeline] #!\n[[phase]]\nname = "twice"\ntool = "P:double"\n', "pipeline.name", 'is missing', 'name = "papers"'),
    case("misspelt_key_of_pipeline", '[pipeline]\nname = "p"\nitems = ["x"] #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.items", "is no key of a pipeline", "did you mean 'item'?"),
    case("sources_in_a_list", '[pipeline]\nname = "p"\nsource = ["P:numbers", "P:upto"] #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.source", 'is one "module:attribute"', "keep one of them"),
    case("argument_beside_with", '[pipeline]\nname = "p"\nsource = "P:numbers"\nupto = 3 #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.upto", "is no key of a pipeline", "a source's arguments stand in with = { ... }"),
    case("source_without_colon", '[pipeline]\nname = "p"\nsource = "tests.toml_pieces.numbers" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.source", "did you mean \"P:numbers\"?"),
    case("source_is_a_path", '[pipeline]\nname = "p"\nsource = "tests/toml_pieces.py:numbers" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.source", "did you mean \"P:numbers\"?"),
    case("source_is_no_function", '[pipeline]\nname = "p"\nsource = "P:NUMBER" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.source", "is no function but int"),
    case("misspelt_module", '[pipeline]\nname = "p"\nsource = "tests.toml_peices:numbers" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.source", "there is no module 'tests.toml_peices'", "did you mean 'tests.toml_pieces'?"),
    case("misspelt_argument_of_source", '[pipeline]\nname = "p"\nsource = "P:numbers"\nwith.up_to = 3 #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.with.up_to", "no argument of P:numbers, which takes upto, start", "did you mean 'upto'?"),
    case("arguments_without_source", '[pipeline]\nname = "p"\nwith = { upto = 3 } #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.with", "there is none; add source"),
    case("item_is_one_text", '[pipeline]\nname = "p"\nitem = "x" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.item", 'write ["x"]'),
    case("key_is_no_field", '[pipeline]\nname = "p"\nitem = ["x"]\nkey = "y" #!\n[[phase]]\nname = "a"\ntool = "P:double"\n', "pipeline.key", "is no item field; there are x"),
    # --- [services]
    case("service_without_use", '[services.store] #!\npath = "a"\n', "services.store.use", "is missing", 'use = "module:Class"'),
    case("misspelt_class", '[services.store]\nuse = "P:Stor" #!\npath = "a"\n', "services.store.use", "has no 'Stor'", "did you mean 'Store'?"),
    case("misspelt_argument", '[services.store]\nuse = "P:Store"\npth = "a" #!\n', "services.store.pth", "is no argument of P:Store", "did you mean 'path'?"),
    case("argument_missing", '[services.store] #!\nuse = "P:Store"\n', "services.store", "needs path, which is missing; add path = ..."),
    case("argument_of_wrong_type", '[services.store]\nuse = "P:Store"\npath = "a"\nsize = "big" #!\n', "services.store.size", "valid integer", 'not "big"'),
    case("service_is_none", '[services.store]\nuse = "P:NUMBER" #!\n', "services.store.use", "which is no service", "a Service, or an async context manager"),
    case("constructor_fails", '[services.store] #!\nuse = "P:Refusing"\n', "services.store", "could not be made: PermissionError: not for you"),
    case("object_with_arguments", '[services.store]\nuse = "P:store"\npath = "a" #!\n', "services.store.path", "takes no arguments; name its class"),
    case("services_in_a_circle", '[services.a] #!\nuse = "P:Store"\npath = "a"\nother = "$b"\n[services.b]\nuse = "P:Store"\npath = "b"\nother = "$a"\n', "services.a", "in a circle: a -> b -> a", "take one of the references out"),
    case("service_of_itself", '[services.a] #!\nuse = "P:Store"\npath = "a"\nother = ["$a"]\n', "services.a", "in a circle: a -> a"),
    case("misspelt_reference", '[services.store]\nuse = "P:Store"\npath = "a"\n[[phase]]\nname = "add"\ntool = "P:Add"\nwith = { store = "$stroe" } #!\n', "phase.add.with.store", "no service or limit 'stroe'", "did you mean '$store'?"),
    case("text_that_looks_like_a_reference", '[services.store]\nuse = "P:Store"\npath = "$secret" #!\n', "services.store.path", 'write "$$secret"'),
    case("variable_without_brackets", '[services.store]\nuse = "P:Store"\npath = "$HOME" #!\n', "services.store.path", 'the variable is written "${HOME}"'),
    case("reference_without_dollar", '[services.store]\nuse = "P:Store"\npath = "a"\n[services.user]\nuse = "P:User"\nstore = "store" #!\n', "services.user.store", "an instance of Store", 'did you mean "$store"?'),
    case("object_as_text", '[services.user]\nuse = "P:User"\nstore = "P:store" #!\n', "services.user.store", 'the object of that name is { "$load" = "P:store" }'),
    # --- [limits]
    case("limit_of_nothing", "[limits.openai] #!\nper = 60\n", "limits.openai", "give one of rate, concurrency, adaptive, memory"),
    case("limit_of_two_kinds", "[limits.openai]\nrate = 50\nconcurrency = 5 #!\n", "limits.openai.concurrency", "one limit too many beside rate", "[limits.NAME]"),
    case("misspelt_key_of_limit", "[limits.openai]\nrate = 50\nbrust = 5 #!\n", "limits.openai.brust", "is no key of a limit", "did you mean 'burst'?"),
    case("key_of_another_limit", "[limits.openai]\nconcurrency = 50\nper = 5 #!\n", "limits.openai.per", "belongs to rate, not to concurrency; remove it"),
    case("rate_as_text", '[limits.openai]\nrate = "50" #!\n', "limits.openai.rate", "is a number", "write it without quotes: 50"),
    case("rate_of_zero", "[limits.openai]\nrate = 0 #!\n", "limits.openai.rate", "must be above 0, not 0"),
    case("half_a_token", "[limits.gpu]\nconcurrency = 1.5 #!\n", "limits.gpu.concurrency", "is a whole number, such as 4, not 1.5"),
    case("no_tokens", "[limits.gpu]\nconcurrency = 0 #!\n", "limits.gpu.concurrency", "must be at least 1, not 0"),
    case("memory_without_unit", '[limits.ram]\nmemory = "4 gigs" #!\n', "limits.ram.memory", 'a text such as "4 GiB", not "4 gigs"'),
    case("adaptive_without_max", "[limits.api]\nadaptive = { min = 1 } #!\n", "limits.api.adaptive.max", "is missing", "max = 64"),
    case("share_without_window", "[limits.api]\nbreaker = { failures = 0.5 } #!\n", "limits.api.breaker.failures", "say of what, window=60.0"),
    case("name_of_a_service_too", '[services.store]\nuse = "P:Store"\npath = "a"\n[limits.store] #!\nrate = 5\n', "limits.store", "is the name of a service too; rename one"),
    # --- [[phase]]
    case("phase_without_name", '[[phase]] #!\ntool = "P:double"\n', "phase[1].name", "is missing", 'name = "..."'),
    case("phase_without_tool", '[[phase]] #!\nname = "b"\n', "phase.b.tool", "is missing", 'tool = "module:attribute"'),
    case("name_is_no_identifier", '[[phase]]\nname = "my phase" #!\ntool = "P:double"\n', "phase[1].name", "is an identifier", 'not "my phase"'),
    case("two_phases_of_one_name", '[[phase]]\nname = "twice" #!\ntool = "P:double"\n', "phase.twice.name", "the name of the phase of line 5 too; rename one"),
    case("misspelt_key_of_phase", 'colect = true #!\n', "phase.twice.colect", "is no key of a phase", "did you mean 'collect'?"),
    case("policy_beside_policy", "timeout = 3 #!\n", "phase.twice.timeout", "is no key of a phase", "did you mean 'policy.timeout'?"),
    case("misspelt_tool", '[[phase]]\nname = "b"\ntool = "P:duoble" #!\n', "phase.b.tool", "has no 'duoble'", "did you mean 'double'?"),
    case("arguments_of_a_function", '[[phase]]\nname = "b"\ntool = "P:plain"\nwith = { x = 3 } #!\n', "phase.b.with", "is a function, which takes no arguments; name a class, or remove with"),
    case("function_of_any_inputs", '[[phase]]\nname = "b"\ntool = "P:any_of" #!\n', "phase.b.tool", "params="),
    case("legacy_class", '[[phase]]\nname = "b"\ntool = "P:LegacyCounter" #!\n', "phase.b.tool", "is a class and no tool; for one with .execute add adapter = {}", 'adapter.method = "..."'),
    case("legacy_object", '[[phase]]\nname = "b"\ntool = "P:legacy" #!\n', "phase.b.tool", "is a LegacyCounter and no tool; for one with .execute add adapter = {}"),
    case("module_for_a_tool", '[[phase]]\nname = "b"\ntool = "tests:toml_pieces" #!\n', "phase.b.tool", "is a module and no tool"),
    case("misspelt_adapter", '[[phase]]\nname = "b"\ntool = "P:plain"\nadapter.ofload = "process" #!\n', "phase.b.adapter.ofload", "is no key of an adapter", "did you mean 'offload'?"),
    case("adapter_of_a_policy", '[[phase]]\nname = "b"\ntool = "P:plain"\nadapter.timeout = 3 #!\n', "phase.b.adapter.timeout", "did you mean 'policy.timeout'?"),
    case("offload_beside_adapter", '[[phase]]\nname = "b"\ntool = "P:plain"\noffload = "process" #!\n', "phase.b.offload", "did you mean 'adapter.offload'?"),
    case("misspelt_offload", '[[phase]]\nname = "b"\ntool = "P:plain"\nadapter.offload = "proces" #!\n', "phase.b.adapter.offload", "did you mean 'process'?"),
    case("options_that_contradict", '[[phase]]\nname = "b"\ntool = "P:plain"\nadapter = { offload = "inline", on_cancel = "wait" } #!\n', "phase.b.adapter", "offload='inline' takes no on_cancel"),
    case("misspelt_returns", '[[phase]]\nname = "b"\ntool = "P:plain"\nadapter.returns = "P:is_od" #!\n', "phase.b.adapter.returns", "did you mean 'is_odd'?"),
    case("argument_of_a_legacy_class", '[[phase]]\nname = "b"\ntool = "P:LegacyCounter"\nadapter = {}\nwith.stp = 3 #!\n', "phase.b.with.stp", "is no argument of P:LegacyCounter", "did you mean 'step'?"),
    case("arguments_of_an_object", "with = { x = 3 } #!\n", "phase.twice.with", "is a tool already, which takes no arguments", "remove with"),
    case("argument_of_a_tool_missing", '[[phase]] #!\nname = "b"\ntool = "P:Add"\n', "phase.b.with", "needs store, which is missing; add store = ..."),
    case("bound_input_that_is_none", 'bind = { y = "x" } #!\n', "phase.twice.bind.y", "is no input of tool 'double'; it takes x"),
    case("bound_to_a_number", "bind = { x = 3 } #!\n", "phase.twice.bind.x", "a text in quotes, not 3"),
    case("misspelt_source_of_an_input", '[pipeline]\nname = "p"\nitem = ["x"]\n[[phase]]\nname = "twice"\ntool = "P:double"\n[[phase]]\nname = "b"\ntool = "P:double"\nbind = { x = "twise" } #!\n', "phase.b.bind.x", "has no source 'twise'", "did you mean 'twice'?"),
    case("misspelt_after", '[[phase]]\nname = "b"\ntool = "P:double"\nafter = "twise" #!\n', "phase.b.after", "is no other phase", "did you mean 'twice'?"),
    case("misspelt_collect", 'collect = "part" #!\n', "phase.twice.collect", "is no expansion of another phase"),
    case("collect_is_false", "collect = false #!\n", "phase.twice.collect", "true for once per run, not false; leave it out"),
    case("misspelt_missing", '[[phase]]\nname = "b"\ntool = "P:total"\nbind = { xs = "twice" }\ncollect = true\nmissing = "ignor" #!\n', "phase.b.missing", "did you mean 'ignore'?"),
    case("missing_without_collect", 'missing = "skip" #!\n', "phase.twice.missing", "belongs to a collect"),
    case("batch_of_none", "batch = 0 #!\n", "phase.twice.batch", "must be at least 1, not 0"),
    case("batch_wait_alone", "batch_wait = 1.0 #!\n", "phase.twice.batch_wait", "belongs to a batch: say how many"),
    case("misspelt_journal", 'journal = "pikle" #!\n', "phase.twice.journal", "did you mean 'pickle'?"),
    case("expanded_bound", '[[phase]]\nname = "parts"\ntool = "P:upto"\nexpand = "part"\n[[phase]]\nname = "b"\ntool = "P:double"\nbind = { x = "parts" } #!\n', "phase.b.bind.x", "bind its element 'part'"),
    case("types_that_cannot_fit", '[[phase]]\nname = "b"\ntool = "P:total"\nbind = { xs = "twice" } #!\n', "phase.b.bind.xs", "of all items: collect=True"),
    case("quotes_in_a_name", '[pipeline]\nname = "anna\'s"\n[[phase]]\nname = "b"\ntool = "P:double"\nafter = "c" #!\n', "phase.b.after", "is no other phase"),
    case("two_tools_of_one_name", '[[phase]]\nname = "b"\ntool = "P:other_double" #!\n', "phase.b.tool", "both named 'double'"),
    case("phases_in_a_circle", '[[phase]] #!\nname = "b"\ntool = "P:double"\nbind = { x = "c" }\n[[phase]]\nname = "c"\ntool = "P:double"\nbind = { x = "b" }\n', "phase.b", "need each other in a circle: b -> c -> b"),
    # --- policy
    case("misspelt_policy", "policy.timout = 3 #!\n", "phase.twice.policy.timout", "is no key of a policy", "did you mean 'timeout'?"),
    case("retry_beside_retry", "policy.attempts = 3 #!\n", "phase.twice.policy.attempts", "did you mean 'retry.attempts'?"),
    case("no_end", "policy.timeout = inf #!\n", "phase.twice.policy.timeout", 'must be a finite number, not inf; "none" is no limit'),
    case("policy_is_a_number", "policy = 3 #!\n", "phase.twice.policy", "is a table of keys, not 3"),
    case("timeout_as_text", 'policy.timeout = "30s" #!\n', "phase.twice.policy.timeout", "a number of seconds", "write the number alone: 30"),
    case("timeout_below_zero", "policy.timeout = -1 #!\n", "phase.twice.policy.timeout", "must be at least 0, not -1"),
    case("unknown_limit", 'policy.rate = "$openai" #!\n[limits.open_ai]\nrate = 5\n', "phase.twice.policy.rate", "no service or limit 'openai'", "did you mean '$open_ai'?"),
    case("limit_of_another_kind", 'policy.concurrency = "$openai" #!\n[limits.openai]\nrate = 5\n[limits.gpu]\nconcurrency = 2\n', "phase.twice.policy.concurrency", "$openai is a rate; there are $gpu"),
    case("limit_without_dollar", 'policy.rate = "openai" #!\n[limits.openai]\nrate = 5\n', "phase.twice.policy.rate", 'with a dollar sign: "$openai"'),
    case("misspelt_error", 'policy.retry = { on = "ConectionError" } #!\n', "phase.twice.policy.retry.on", "did you mean 'ConnectionError'?"),
    case("misspelt_retry", "policy.retry = { attemps = 3 } #!\n", "phase.twice.policy.retry.attemps", "is no key of a retry", "did you mean 'attempts'?"),
    case("misspelt_key_in_a_table", "[phase.policy.retry]\nattempts = 3\n[phase.policy.retry.wait]\nfrist = 1 #!\n", "phase.twice.policy.retry.wait.frist", "did you mean 'first'?"),
    case("no_attempt", "policy.retry.attempts = 0 #!\n", "phase.twice.policy.retry.attempts", "must be at least 1, not 0"),
    case("misspelt_priority", 'policy.priority = "hihg" #!\n', "phase.twice.policy.priority", "low, normal, high, critical", "did you mean 'high'?"),
    case("fallback_that_needs_more", 'policy.fallback = "P:total" #!\n', "phase.twice.policy.fallback", "it needs 'xs'", "give it a default"),
    case("hedge_of_what_runs_once", "policy.hedge_after = 1 #!\n", "phase.twice.policy.hedge_after", "idempotent"),
    case("key_that_is_no_input", 'policy.rate = "$hosts" #!\n[limits.hosts]\nrate = 5\nkey = "host"\n', "phase.twice.policy.rate", "the key 'host'", "is no input of tool 'double'"),
    # --- variables and profiles
    case("unset_variable", '[services.store]\nuse = "P:Store"\npath = "${KGAS_NOT_SET}/x" #!\n', "services.store.path", "KGAS_NOT_SET is not set", "${KGAS_NOT_SET:-...}"),
    case("variable_not_closed", '[services.store]\nuse = "P:Store"\npath = "${HOME" #!\n', "services.store.path", "is not closed by }"),
    case("no_variable", '[services.store]\nuse = "P:Store"\npath = "${my-home}" #!\n', "services.store.path", "${my-home} names no variable"),
    case("variable_is_no_number", 'policy.timeout = "${KGAS_TEXT}" #!\n', "phase.twice.policy.timeout", 'not "soon" (the value is from ${KGAS_TEXT})'),
    case("variable_is_too_little", 'policy.timeout = "${KGAS_LITTLE:-3}" #!\n', "phase.twice.policy.timeout", "not -5 (the value is from ${KGAS_LITTLE})"),
    case("default_is_no_number", 'policy.timeout = "${KGAS_NOT_SET:-late}" #!\n', "phase.twice.policy.timeout", 'not "late" (the value is from the default of ${KGAS_NOT_SET})'),
    case("variable_of_an_argument", '[services.store]\nuse = "P:Store"\npath = "a"\nsize = "${KGAS_TEXT}" #!\n', "services.store.size", 'not "soon"', "from ${KGAS_TEXT}"),
    case("variable_is_no_module", '[[phase]]\nname = "b"\ntool = "${KGAS_TEXT}:double" #!\n', "phase.b.tool", "there is no module 'soon'", "from ${KGAS_TEXT}"),
    case("variable_in_a_list", 'policy.retry.on = ["OSError", "${KGAS_TEXT}"] #!\n', "phase.twice.policy.retry.on[1]", "'soon' is no error", "from ${KGAS_TEXT}"),
    case("misspelt_phase_of_a_profile", "[profile.prod.phase.twise.policy] #!\ntimeout = 3\n", "profile.prod.phase.twise", "there is no phase 'twise'", "did you mean 'twice'?"),
    case("misspelt_part_of_a_profile", "[profile.prod.phases.twice.policy] #!\ntimeout = 3\n", "profile.prod.phases", "did you mean 'phase'?"),
    case("misspelt_policy_of_a_profile", "[profile.prod.phase.twice.policy]\ntimeot = 3 #!\n", "profile.prod.phase.twice.policy.timeot", "did you mean 'timeout'?"),
    case("profile_is_a_list", "[[profile]] #!\nname = 'prod'\n", "profile", "write [profile.NAME.phase.PHASE.policy]"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", CASES)
def test_a_mistake_is_told_with_file_line_key_and_mend(
    mistake: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    monkeypatch.setenv("KGAS_TEXT", "soon")
    monkeypatch.setenv("KGAS_LITTLE", "-5")
    text = mistake.text if "[pipeline]" in mistake.text or "[[pipeline]]" in mistake.text else HEAD + mistake.text
    file = tmp_path / "mine.toml"
    file.write_text(text)
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    (line,) = marked or [mistake.line]
    with pytest.raises(LoadError) as caught:
        load_pipeline(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: {mistake.key}: "), message
    for part in mistake.said:
        assert part.replace("P:", f"{P}:") in message
    assert "\n" not in message


def test_a_mistake_that_shows_no_value_names_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGAS_TEXT", "soon")
    file = tmp_path / "mine.toml"
    file.write_text(HEAD + 'policy.timeot = "${KGAS_TEXT}"\n')
    with pytest.raises(LoadError, match=r"did you mean 'timeout'\?$"):
        load_pipeline(file)


def test_modules_that_lie_beside_the_file_and_not_here_are_told_once_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "over there", tmp_path / "here"
    (there / "sub").mkdir(parents=True)
    here.mkdir()
    (there / "kgmine.py").write_text("def source(): ...\n")
    (there / "sub" / "kgother.py").write_text("def double(x): ...\n")
    file = there / "sub" / "mine.toml"
    tools = ("kgmine:double", "sub.kgother:double", "kgother:double", "kgother:double", "kgnowhere:double")
    phases = [f'[[phase]]\nname = "p{number}"\ntool = "{tool}"\n' for number, tool in enumerate(tools)]
    file.write_text('[pipeline]\nname = "p"\nsource = "kgmine:source"\n' + "".join(phases))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(here)
    with pytest.raises(LoadError) as caught:
        load_pipeline(file)
    first, second, third = str(caught.value).splitlines()
    mend = "are looked up from the working directory, wherever the file is; cd '{0}' first, or set PYTHONPATH='{0}'"
    assert f"6: phase.p0.tool: there is no module 'kgmine' in {here}: it lies in the folder {there}, " in first
    assert first.endswith(mend.format(there))
    assert f"phase.p2.tool: there is no module 'kgother' in {here}: it lies in the folder {there / 'sub'}, " in second
    assert second.endswith(mend.format(there / "sub"))
    assert f"phase.p4.tool: there is no module 'kgnowhere' in {here} or among what is installed" in third


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize("is_setting", [False, True])
def test_dotted_keys_that_nest_without_end_are_a_mistake(tmp_path: Path, is_setting: bool) -> None:
    key = "with.deep" + ".a" * 3000
    text = '[pipeline]\nname = "p"\n[[phase]]\nname = "a"\ntool = "m:a"\n'
    path = tmp_path / "deep.toml"
    path.write_text(text if is_setting else f"{text}{key} = 1\n")
    with pytest.raises(LoadError, match="nested too deeply"):
        load_pipeline(path, settings=[f"phase.a.{key}=1"] if is_setting else ())


def test_a_variable_in_the_default_of_another_is_refused_and_not_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[pipeline]\nname = "${NOT_SET_AT_ALL:-${HOME}}"\n[[phase]]\nname = "a"\ntool = "m:a"\n')
    with pytest.raises(LoadError, match=r"p\.toml:2: pipeline\.name: .* has a variable in its default"):
        load_pipeline(path)


def test_a_path_that_no_file_can_have_is_a_mistake() -> None:
    with pytest.raises(LoadError, match="cannot be read: embedded null byte"):
        load_pipeline("a\0b.toml")


WRONG = """\
[pipeline]
name = "p"
item = ["x"]
sorce = "P:numbers"                           #! pipeline.sorce
key = "y"                                     #! pipeline.key

[limit.elsewhere]                             #! limit
rate = 5

[services.store]
use = "P:Store"
pth = "a"                                     #! services.store.pth
size = "${KGAS_NOT_SET}"                      #! services.store.size

[services.other]
use = "P:Stor"                                #! services.other.use
path = "$nobody"                              #! services.other.path

[services.user]
use = "P:User"
store = "$store"

[services.a]                                  #! services.a
use = "P:Store"
path = "a"
other = "$b"
size = "three"                                #! services.a.size
[services.b]
use = "P:Store"
pth = "b"                                     #! services.b.pth
other = "$a"
[services.above]
use = "P:Store"
path = "c"
other = "$a"
size = "four"                                 #! services.above.size

[limits.calls]
rate = "5"                                    #! limits.calls.rate
brust = 3                                     #! limits.calls.brust
cost = "P:cost_off"                           #! limits.calls.cost

[limits.both]
rate = 5
memory = 5                                    #! limits.both.memory

[[phase]]
name = "twice"
tool = "P:duoble"                             #! phase.twice.tool
bind = { x = "z" }                            #! phase.twice.bind.x
policy.timout = 3                             #! phase.twice.policy.timout
policy.deadline = "soon"                      #! phase.twice.policy.deadline
policy.rate = ["$calls", "$elsewhere"]
policy.concurrency = "$cals"                  #! phase.twice.policy.concurrency

[[phase]]
name = "add"
tool = "P:Add"
bind = { x = "twice" }
after = "twise"                               #! phase.add.after
when = "P:is_od"                              #! phase.add.when
batch_wait = 1.0                              #! phase.add.batch_wait
[phase.with]
store = "$store"
amount = "many"                               #! phase.add.with.amount
sorce = 3                                     #! phase.add.with.sorce
[phase.policy.retry]
on = ["ConectionError", "OSError"]            #! phase.add.policy.retry.on[0]
attempts = 0                                  #! phase.add.policy.retry.attempts
wait = "P:wait_off"                           #! phase.add.policy.retry.wait
after = "P:delay_off"                         #! phase.add.policy.retry.after

[[phase]]
name = "sums"
tool = "P:total"
bind = { xs = "add" }
colect = true                                 #! phase.sums.colect
batch = 1.5                                   #! phase.sums.batch
batch_wait = 1.0

[[phase]]
name = "halves"
tool = "P:halve"
bind.x = "w"                                  #! phase.halves.bind.x
bind.y = "twice"                              #! phase.halves.bind.y
collect = "prt"                               #! phase.halves.collect

[[phase]]
name = "b"
tool = "P:double"
bind = { x = "c" }
policy.hedge_after = 1                        #! phase.b.policy.hedge_after
after = "c"

[[phase]]
name = "many"
tool = "P:upto"
policy.timeout = -1                           #! phase.many.policy.timeout
policy.retry.attempts = -1                    #! phase.many.policy.retry.attempts
policy.retry.wait = -1                        #! phase.many.policy.retry.wait
expand = "part"

[[phase]]
name = "wrong"
tool = "P:negated"
bind = { ys = "part" }                        #! phase.wrong.bind.ys

[[phase]]
name = "lost"
tool = "P:double"
bind = { x = "w" }                            #! phase.lost.bind.x

[[phase]]
name = "c"
tool = "P:halve"
bind = { x = "b" }

[profile.prod.phase.twise]                    #! profile.prod.phase.twise
[profile.prod.phase.many.policy]
timout = 3                                    #! profile.prod.phase.many.policy.timout
[profile.test.limit.calls]                    #! profile.test.limit
"""
NOWHERE = ("phase.b",)  # a circle, told at the first of its phases


def test_all_mistakes_of_a_file_are_told_at_once_and_none_that_follows_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    text = WRONG.replace("P:", f"{P}:")
    file = tmp_path / "mine.toml"
    file.write_text(text)
    marked = {(number, line.partition("#! ")[2]) for number, line in enumerate(text.splitlines(), 1) if "#! " in line}
    with pytest.raises(LoadError) as caught:
        load_pipeline(file, settings=["phase.add.policy.timout=3", "services.stor.path=x"])
    told = str(caught.value).splitlines()
    assert "--set phase.add.policy.timout: is no key of a policy" in told[-1] + told[-2]
    assert "services.stor.path=x: there is no service 'stor'" in told[-1] + told[-2]
    places = [line.removeprefix(f"{file}:").split(": ")[:2] for line in told[:-2]]
    found = [(int(number), key) for number, key in places]
    assert found == sorted(found, key=lambda one: one[0])
    assert {one for one in found if one[1] not in NOWHERE} == marked
    assert len(found) == len(marked) + len(NOWHERE)
