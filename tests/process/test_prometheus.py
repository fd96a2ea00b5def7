"""The rules and the dashboard's queries in a Prometheus that runs, which scrapes what a worker and an API tell."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from tests.kit import free_port, until_sync
from tests.unit.test_deploy import DEPLOY, QUERIES, RULES, _texts


class Target(BaseHTTPRequestHandler):
    """Tells what a worker and an API tell."""

    def log_message(self, *_: object) -> None:
        """Not to the tests' stderr."""

    def do_GET(self) -> None:
        text = _texts()[self.path == "/worker"].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A server that has the rules and scrapes a worker and an API; what its API answers."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    target = ThreadingHTTPServer(("127.0.0.1", 0), Target)
    threading.Thread(target=target.serve_forever, daemon=True).start()
    static = [{"targets": [f"127.0.0.1:{target.server_address[1]}"]}]
    jobs = [
        {"job_name": name, "metrics_path": f"/{name}", "static_configs": static} for name in ("worker", "api")
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "alerts.yml")],
        "scrape_configs": jobs,
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    files = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen([program, *files, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def ask(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urlencode(query)}"
        try:
            with urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            return {"said": error.read().decode()}
        except OSError:  # it starts
            return {}

    try:
        yield ask
    finally:
        running.kill()
        running.wait()
        target.shutdown()
        target.server_close()


def test_a_running_prometheus_has_all_rules_and_answers_all_panels(prometheus: Callable[..., Any]) -> None:
    def scraped() -> bool:
        found = prometheus("query", query="sum(up)")
        return [one["value"][1] for one in found.get("result", ())] == ["2"]

    until_sync(scraped)
    answers = {expr: prometheus("query", query=expr) for expr, _ in QUERIES}
    assert [expr for expr, said in answers.items() if "result" not in said] == []
    assert any(said["result"] for said in answers.values())

    def judged() -> bool:
        groups = prometheus("rules")["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])

    until_sync(judged)
    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in RULES]
    assert {rule["health"] for rule in rules} == {"ok"}
