"""Alerts, dashboard and reference speak of metrics, labels and commands that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from genctl.cli.words import usage_mistake
from genctl.domain.details import build
from genctl.domain.model import Category, Failure, Image, Outcome, Success
from genctl.domain.providers import UNKNOWN
from genctl.domain.rights import OF_KEY
from genctl.ops.runbook.load import names
from genctl.services.metrics import PILES, Metrics, WorkerMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS = [
    panel
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    if panel["type"] != "row"
]
QUERIES = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
OF_THE_SCRAPE = {"instance", "job", "le"}


def failure(category: Category, outcome: Outcome = Outcome.REFUSED) -> Failure:
    return Failure(code="Timeout", category=category, fatal=False, outcome=outcome, user_message="-")


def _texts() -> list[str]:
    """What a worker and an API process show once everything has happened in them."""
    worker, api = WorkerMetrics(UNKNOWN, "seedream4"), Metrics()
    worker.follow(
        jobs=lambda: 1, calls=lambda: 1, answers=lambda: 1, silent_s=lambda: 0.0, gate=lambda: "open"
    )
    results: list[Success | Failure] = [Success((Image("https://host/i.png"),))]
    results += [failure(category, outcome) for category in Category for outcome in Outcome]
    for result in results:
        worker.called(result, 1.0)
        if isinstance(result, Failure):
            worker.retried(result)
            worker.settled(
                build(result, attempts=1, max_attempts=3, first_attempt_at=None, provider=UNKNOWN), 0.1
            )
        else:
            worker.settled(None, 0.1)
    worker.refused("other")
    worker.count("unnotified")
    worker.piled([])
    worker.queued("jobs", {})
    worker.queued("dlq", {})
    for status in (200, 503):
        api.requests.labels("GET", status).inc()
    api.emitted.labels("failed").inc()
    return [worker.text().decode(), api.text().decode()]


FAMILIES = [family for text in _texts() for family in text_string_to_metric_families(text)]


def _values() -> dict[str, dict[str, set[str]]]:
    """By sample and label."""
    found: dict[str, dict[str, set[str]]] = {}
    for sample in (sample for family in FAMILIES for sample in family.samples):
        labels = found.setdefault(sample.name, {})
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
    return found


VALUES = _values()


def mistakes(expr: str, told: str = "") -> list[str]:
    """What a query, and the labels that the text beside it tells, have against what there is."""
    metrics = re.findall(r"\bgenctl_\w+", expr)
    wrong = [name for name in metrics if name not in VALUES]
    labels = {label for name in metrics for label in VALUES.get(name, ())} | OF_THE_SCRAPE
    for name, selector in re.findall(r"(genctl_\w+)\{([^}]*)\}", expr):
        for label, pattern in re.findall(r'(\w+)[=!]~?"([^"]*)"', selector):
            known = VALUES.get(name, {}).get(label, set())
            wrong += [
                f"{label}={one}"
                for one in pattern.split("|")
                if not any(map(re.compile(one).fullmatch, known))
            ]
    grouped = {label for some in re.findall(r"\bby \(([^)]*)\)", expr) for label in re.findall(r"\w+", some)}
    wrong += sorted(grouped - labels)
    kept = grouped if re.search(r"\b(sum|max|topk)\b", expr) else labels
    return wrong + sorted(set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", told)) - kept)


def unknown(command: str) -> str | None:
    """What the command line, or the list of runbooks, has against it."""
    words = command.split()[1:]
    if words[:2] == ["runbook", "run"]:
        return None if words[2:] in [[name] for name in names()] else "no such runbook"
    return usage_mistake(words)


@pytest.mark.parametrize(
    ("expr", "told", "wrong"),
    [
        ("sum by (code) (rate(genctl_worker_settled_total[5m]))", "{{code}}", []),
        ("genctl_worker_settled", "", ["genctl_worker_settled"]),
        ('genctl_sessions{pile="refund_pending"} > 0', "", ["pile=refund_pending"]),
        ('genctl_worker_gate{gate="open"}', "", ["gate=open"]),
        ("sum by (tool) (genctl_worker_jobs)", "", ["tool"]),
        ("sum(genctl_worker_jobs)", "{{ $labels.instance }}", ["instance"]),
    ],
)
def test_a_wrong_name_label_or_value_is_seen(expr: str, told: str, wrong: list[str]) -> None:
    assert mistakes(expr, told) == wrong


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_names_what_to_run(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert mistakes(rule["expr"], notes["summary"]) == []
    assert notes["run"].startswith("genctl ")
    assert unknown(notes["run"]) is None
    assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("metrics", [Metrics(), WorkerMetrics(UNKNOWN, "seedream4")], ids=["api", "worker"])
def test_a_process_that_is_gone_pages_somebody(metrics: Metrics | WorkerMetrics) -> None:
    """By the absence of what it tells from its start: a rule that compares is silent when nobody answers."""
    told = {
        sample.name
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    pages = [rule["expr"] for rule in RULES if rule["labels"]["severity"] == "page"]
    gone = [match[1] for expr in pages if (match := re.fullmatch(r"absent\((\w+)\)", expr))]
    assert told.intersection(gone)


def test_a_probe_does_not_begin_the_wait_of_an_alert_about_the_gate_anew() -> None:
    """A breaker's gate goes from closed to probing and back: a series for each state would never last."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "GenctlGateClosed"]
    assert rule["expr"].startswith('max by (tool) (genctl_worker_gate{state=~"closed|probing"})')


@pytest.mark.parametrize(("expr", "legend"), QUERIES, ids=[expr for expr, _ in QUERIES])
def test_a_panel_asks_for_what_there_is(expr: str, legend: str) -> None:
    assert mistakes(expr, legend) == []


def test_a_command_that_a_panel_names_is_one() -> None:
    told = [re.search(r"genctl ([a-z].*)", panel["description"]) for panel in PANELS]
    commands = [match[0].replace("CODE", "Timeout") for match in told if match]
    assert commands
    assert [command for command in commands if unknown(command)] == []


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[..., None]:
    """Prometheus's own judge of a file of rules or of tests of rules."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")

    def judge(what: str, content: object) -> None:
        (tmp_path / "judged.yml").write_text(yaml.safe_dump(content))
        command = [found, *what.split(), str(tmp_path / "judged.yml")]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert said.returncode == 0, said.stdout + said.stderr

    return judge


def test_prometheus_takes_all_rules_and_the_queries_of_all_panels(promtool: Callable[..., None]) -> None:
    shown = [{"record": f"panel:{number}", "expr": expr} for number, (expr, _) in enumerate(QUERIES)]
    promtool("check rules", {"groups": [{"name": "all", "rules": [*RULES, *shown]}]})


def test_a_gate_that_is_probed_now_and_then_is_told_as_closed(promtool: Callable[..., None]) -> None:
    states = {"open": "0x9", "closed": "1 1 0 1 1 0 1 1 0 1", "probing": "0 0 1 0 0 1 0 0 1 0"}
    series = [
        {"series": f'genctl_worker_gate{{tool="other",state="{state}"}}', "values": values}
        for state, values in states.items()
    ]
    series += [{"series": 'genctl_worker_gate{tool="seedream4",state="closed"}', "values": "0x9"}]
    (rule,) = [rule for rule in RULES if rule["alert"] == "GenctlGateClosed"]
    said = {name: text.replace("{{ $labels.tool }}", "other") for name, text in rule["annotations"].items()}
    fired = {"exp_labels": rule["labels"] | {"tool": "other"}, "exp_annotations": said}
    looks = [
        {"eval_time": at, "alertname": rule["alert"], "exp_alerts": alerts}
        for at, alerts in (("4m", []), ("6m", [fired]), ("9m", [fired]))
    ]
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": looks}]
    promtool("test rules", {"rule_files": [str(DEPLOY / "alerts.yml")], "tests": tests})


def test_an_answer_that_waits_for_its_row_pages_whoever_tells_of_it(promtool: Callable[..., None]) -> None:
    """The worker that has it, or the database when that worker is gone; not a moment of waiting."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "GenctlAnswersWaiting"]
    kept, waiting = 'genctl_sessions{pile="answers_kept"}', "genctl_worker_answers_waiting"
    tests = []
    for in_rows, in_hands, value in (
        ("0x5", "2x5", "2"),
        ("3x5", "0x5", "3"),
        ("_x5", "0 1 0 1 0 0", None),
    ):
        said = rule["annotations"]["summary"].replace("{{ $value }}", str(value))
        fired = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"] | {"summary": said}}
        look = {"eval_time": "4m", "alertname": rule["alert"], "exp_alerts": [fired] if value else []}
        series = [{"series": kept, "values": in_rows}, {"series": waiting, "values": in_hands}]
        tests.append({"interval": "1m", "input_series": series, "alert_rule_test": [look]})
    promtool("test rules", {"rule_files": [str(DEPLOY / "alerts.yml")], "tests": tests})


def test_every_metric_has_a_panel() -> None:
    shown = " ".join(expr for expr, _ in QUERIES)
    assert [family.name for family in FAMILIES if family.name not in shown] == []


def test_every_metric_is_in_the_reference_as_it_tells_of_itself() -> None:
    table = set(re.findall(r"^\| `(genctl_\w+)` \| (.*) \| (.*) \|$", REFERENCE, re.MULTILINE))
    assert table == {
        (
            family.name + "_total" * (family.type == "counter"),
            ", ".join(
                f"`{label}`"
                for label in sorted(
                    {*(label for sample in family.samples for label in sample.labels)} - {"le"}
                )
            ),
            family.documentation,
        )
        for family in FAMILIES
    }


def test_the_piles_are_those_that_the_database_tells() -> None:
    sql = (ROOT / "src/genctl/edges/sql/status.sql").read_text()
    statement = sql.partition("-- name: piles")[2].partition("-- name:")[0]
    assert {pile for pile in PILES if f"'{pile}'" in statement} == {*PILES}
    assert statement.count("union all") == len(PILES) - 1


def test_the_policy_for_a_key_allows_what_sqs_needs_of_it() -> None:
    (allowed,) = json.loads((DEPLOY / "iam-key.json").read_text())["Statement"]
    assert allowed["Action"] == [*OF_KEY]
    assert allowed["Condition"] == {"StringEquals": {"kms:ViaService": "sqs.REGION.amazonaws.com"}}
