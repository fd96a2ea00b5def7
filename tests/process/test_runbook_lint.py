"""Bad runbooks: lint names file, line and column, and no change of a failing one makes it end well."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from genctl import cli
from genctl.cli.words import complaint
from genctl.ops.runbook import source
from genctl.ops.runbook.load import examine, names
from genctl.ops.runbook.model import schema
from genctl.ops.runbook.page import page

ROOT = Path(__file__).parents[2]
BULK = {"redrive", "discard", "import", "retry", "cancel"}
FAILING = """\
name: failing
purpose: A run that fails.
when: Never.
touches: Nothing.
variables:
  who: {type: text, default: ann, help: Who}
  often: {type: integer, default: 2, help: How often}
  slow: {type: duration, default: 200ms, help: How long}
  key: {type: text, optional: true, secret: true, help: A key}
steps:
  - step: version
    does: Save something.
    genctl: [version]
    expect: [exit == `0`]
    save: {version: json.version, exit: {path: exit, secret: false}}
  - step: ask
    does: Ask.
    ask: Is it ${who}?
  - step: answer
    does: Answer.
    shell: echo yes
    expect: [exit == `0`]
    save: {answer: text}
  - step: wait
    does: Wait.
    shell: test "${answer}" = yes
    wait: {every: 10ms, within: "${slow}"}
    expect: [exit == `0`]
  - step: fail
    does: Fail.
    if:
      - exit == `0`
      - version != `null`
      - contains(`["ann", "bob"]`, who)
    shell: exit 3
    timeout: 5s
    dangerous: true
    expect: ["contains(`[0, 1]`, exit)"]
  - step: sql
    does: Ask the database.
    sql: {query: 'select ${often}', writes: false}
    expect: [count > `0`]
  - step: http
    does: Ask a server.
    http:
      {method: POST, url: 'http://127.0.0.1:9/', path: [a], query: {b: c}, headers: {d: e}, bearer: "${key}", json: {f: 1}}
    expect: [status < `300`]
  - step: clean
    does: Clean up.
    shell: "true"
    always: true
    expect: [exit == `0`]
"""
OTHERS = [yaml.compose(text) for text in ("null", "zzz", "[1]")]
NAMES = {"variables", "save", "headers", "query", "json"}  # whose keys are names


def pairs(node: yaml.Node | None, above: str = "") -> Iterator[tuple[str, list[Any], int]]:
    """Each key with what holds it and where; `above` is the key of what holds it."""
    if isinstance(node, yaml.MappingNode):
        for number, (key, value) in enumerate(node.value):
            yield above, node.value, number
            yield from pairs(value, str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from pairs(one, above)


def mutations(tree: yaml.Node) -> Iterator[str]:
    """Change the tree in one place after the other; what was done."""
    for above, holder, number in list(pairs(tree)):
        key, value = holder[number]
        changed = {"deleted": [], "doubled": [(key, value)] * 2}
        renamed = copy.copy(key)
        renamed.value += "x"
        changed["renamed"] = [(renamed, value)]
        for node in OTHERS:
            if node and node.tag != value.tag:
                changed[f"retyped as {node.tag} {node.value}"] = [(key, node)]
        for how, instead in changed.items():
            holder[number : number + 1] = instead
            yield f"{above}.{key.value} {how}"
            holder[number : number + len(instead)] = [(key, value)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has set nothing."""
    for name in ("DATABASE_URL", "GENCTL_SECRET", "CI"):
        monkeypatch.delenv(name, raising=False)
    for kind in ("GENCTL_HOME", "HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(kind, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_mutation_of_a_failing_runbook_makes_it_end_well(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each key deleted, renamed, retyped or doubled: lint's exit code 2 with line and column, or still 1."""
    file, codes = home / "failing.yaml", dict[str, int]()
    file.write_text(text := FAILING.replace("200ms", "20s"))
    assert examine(file, complaint)[1] == []
    assert cli.main(["runbook", "run", str(file), "--yes"]) == 1
    assert "step fail: expected that contains(`[0, 1]`, exit); found 3" in capsys.readouterr().out
    tree, lines = yaml.compose(text), len(text.splitlines())
    assert tree is not None
    assert tree is not None
    monkeypatch.setattr(source._Loader, "get_single_node", lambda _: tree)  # as if it were parsed again
    for what in mutations(tree):
        _, found = examine(file, complaint)
        assert all(1 <= one.line <= lines and one.column >= 1 for one in found), what
        codes[what] = 2 if found else cli.main(["runbook", "run", str(file), "--yes"])
    assert {what: code for what, code in codes.items() if code not in {1, 2}} == {}
    structural = {what: code for what, code in codes.items() if what.partition(".")[0] not in NAMES}
    assert [what for what, code in structural.items() if what.endswith("doubled") and code != 2] == []
    assert [what for what, code in structural.items() if what.endswith("renamed") and code != 2] == []


BAD = {
    "": "empty",
    "name: a: b\n": "mapping values are not allowed",
    "a: &x [1]\nb: *x\n": "an alias",
    "[" * 1500: "nested too deeply",
    "name: \xff".encode("latin-1"): "does not allow",
    "name: \x00": "does not allow",
    'name: "\\ud800"': "cannot be read",
    "!!python/object:os.system {}": "the tag",
    "name: !!python/name:os.system x": "the tag",
    "name: !!str x": "the tag",
    "name: x\nvariables: !!map\n  a: 1": "the tag",
    "? [a]\n: b\n": "a key must be a text",
    "- 1\n": "Expected `object`, got `array`",
    "a: 1\n---\nb: 2\n": "found another document",
    "x" * 300_000: "larger than",
    f"name: {'1' * 5000}\n": "quote it",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_runbook_is_told_with_its_place(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    _, found = examine(file, complaint)
    assert found
    assert str(found[0]).startswith(f"{file}:")
    assert BAD[text] in found[0].message


def test_a_file_that_cannot_be_read_and_an_unknown_name_are_exit_2(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in {
        "no.yaml": "No such file",
        "my own.yaml": "fix: genctl runbook lint 'my own.yaml'",
        str(home): "directory",
        "missing-refund": "did you mean missing-refunds?",
    }.items():
        assert cli.main(["runbook", "run", name, "--yes"]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["runbook", "lint", "no.yaml", "-o", "json"]) == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding == {
        "file": "no.yaml",
        "line": 1,
        "column": 1,
        "message": "cannot be read: No such file or directory",
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[version]", "[verson]", "13:13: No such command 'verson'. Did you mean 'version'?"),
        ("[version]", "[version, --all]", "13:13: No such option"),
        ("[version]", "[--version]", "13:13: --version: the command version tells it"),
        ("[version]", "[sessions, list, --limit, many]", "'many' is not a valid integer"),
        ("[version]", "[sessions, show]", "Missing argument 'ID'"),
        ("[version]", "[refunds, check, extra]", "takes no 'extra'"),
        ("[version]", "[dlq]", "genctl dlq needs one of discard, export, history"),
        ("[version]", "[dlq, redrive, --yes]", "mark the step dangerous"),
        ("[version]", "[version, -o, yaml]", "the output is JSON anyway"),
        ("[version]", "[version, -oyaml]", "the output is JSON anyway"),
        ("[exit == `0`]\n    save: {version", "[exit == 0]\n    save: {version", "a number is written `5`"),
        ("[count > `0`]", "['json == \"ok\"']", "nothing is called json, only values, rows, count"),
        ("[count > `0`]", "[count > values.oft]", "unknown value oft: did you mean often?"),
        ("[version]", "[runbook, list]", "a runbook runs no runbook"),
        ("[version]", '["${often}"]', "No such command"),
        ("[version]", '[sessions, show, "x${who}"]', "a value is a whole argument"),
        ("[version]", '[sessions, show, "${whom}"]', "unknown value whom: did you mean who?"),
        ("[version]", '[sessions, show, "${answer}"]', "unknown value answer"),
        ("purpose:", "porpose:", "2:1: unknown key 'porpose': did you mean purpose?"),
        ("secret: true, help: A key", "secret: true, help: A key, default: 5", "exactly one of default"),
        ("type: integer, default: 2", "type: integer, default: true", "the default is no integer"),
        ("type: integer, default: 2", "type: boolean, default: 1", "the default is no boolean"),
        ("type: duration, default: 200ms", "type: duration, default: 5", "the default is no duration"),
        ("step: wait", "step: version", "a second step version"),
        ("path: exit, secret: false", "path: 'exit[', secret: false", "no JMESPath"),
        ("method: POST", "method: PSOT", "got 'PSOT': did you mean POST?"),
        ("timeout: 5s", "wait: {within: 1m}\n    timeout: 5s", "a step that waits takes no timeout"),
        ("ask: Is it ${who}?", "ask: Is it ${who}?\n    show: text", "a step that asks takes no show"),
        ("    expect: [count > `0`]\n", "", "the key expect is missing"),
        ("path: exit, secret: false", "path: lenght(text), secret: false", "did you mean length?"),
        (
            "path: exit, secret: false",
            "path: 'json[?a==`${who}`]', secret: false",
            "a path takes no value: who",
        ),
        ("    always: true\n", "", ""),
        ("url: 'http://127.0.0.1:9/'", "url: 'ftp://x'", "Expected a URL"),
        ("]`, who)", "]`, hwo)", "unknown value hwo: did you mean who?"),
        ("path: exit, secret", "path: " + "(" * 3000 + ", secret", "no JMESPath: nested too deeply"),
        ("query: {b: c}", "query: {'${who}x': c}", "a value is a whole argument"),
        ("select ${often}", "select ${Often}", "a value is ${name}, of small letters"),
        ("genctl: [version]", "genctl: [up]", "it never ends"),
        ("every: 10ms", "every: 10", "Expected `str`, got `int`"),
        ("timeout: 5s", "timeout: 99999d", "Expected a duration such as 250ms"),
        ("step: wait", "step: Wait", "Expected a name of small letters, digits and -"),
        ("shell: exit 3", "shell: exit 3\n    sql: {query: select 1}", "not sql and shell"),
    ],
)
def test_findings(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    assert old in FAILING
    file.write_text(FAILING.replace(old, new))
    found = [str(finding) for finding in examine(file, complaint)[1]]
    assert any(said in one for one in found) if said else not found, found


def test_a_page_can_be_followed_by_hand(tmp_path: Path) -> None:
    """The command with what it cannot do without, and all of a request."""
    file = tmp_path / "x.yaml"
    file.write_text(FAILING.replace("default: ann", "required: true"))
    loaded, _ = examine(file, complaint)
    assert loaded
    text = page(loaded.runbook)
    assert "    genctl runbook run failing --var who=...\n" in text
    request = text.partition("```yaml\n")[2].partition("```")[0]
    (asked,) = [step.http for step in loaded.runbook.steps if step.http]
    assert msgspec.convert(yaml.safe_load(request), type(asked)) == asked


def test_the_set_is_without_a_fault_and_each_goes_by_its_files_name() -> None:
    for name in names():
        loaded, found = examine(ROOT / "runbooks" / f"{name}.yaml", complaint)
        assert found == []
        assert loaded
        assert loaded.runbook.name == name
        first = loaded.file.read_text().splitlines()[0]
        assert first == "# yaml-language-server: $schema=schema.json"


def test_the_schema_for_editors_is_that_of_the_model() -> None:
    assert json.loads((ROOT / "runbooks" / "schema.json").read_text()) == schema()


def test_the_example_of_the_docs_is_without_a_fault(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()
    file = tmp_path / "example.yaml"
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert examine(file, complaint)[1] == []


@pytest.mark.parametrize("name", names())
def test_bulk_work_of_the_set_says_why(name: str) -> None:
    """Its history names the runbook, so that a reader finds the report."""
    loaded, _ = examine(ROOT / "runbooks" / f"{name}.yaml", complaint)
    assert loaded
    steps = [step.genctl for step in loaded.runbook.steps if step.genctl and "--dry-run" not in step.genctl]
    bulk = [words for words in steps if words[0] in {"dlq", "sessions"} and words[1] in BULK]
    assert [words for words in bulk if not any(name in str(word) for word in words)] == []
