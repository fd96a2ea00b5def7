"""Compose, Kubernetes, ECS and systemd run command lines and settings that there are, with the right grace."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import botocore.loaders
import botocore.model
import pytest
import yaml
from botocore.validate import ParamValidator
from tests.ship.judges import DEPLOY, ROOT, judged

from genctl import __version__
from genctl.base.durations import parse_duration
from genctl.base.settings import TABLE
from genctl.cli.running import LIMIT_S
from genctl.cli.words import usage_mistake
from genctl.ops.health import WITHIN_S
from genctl.services.liveness import SILENT_S
from genctl.tools.found import found

SETTINGS = {entry.env: entry for entry in (*TABLE, *found().settings)}
OF_AWS = {"AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
LAST_S = 10.0  # more than a worker takes behind its grace
FARGATE_STOP_S = 120  # the longest that Fargate takes
DEFAULTS = {entry.env: entry.default for entry in TABLE}


class Service(NamedTuple):
    """A process that one of the files runs; `stop_s` is the time until it is killed, None: for ever."""

    file: str
    args: list[str]
    env: dict[str, str | None]
    secrets: frozenset[str]
    stop_s: float | None
    probes: list[str]

    @property
    def ends_within_s(self) -> float:
        """How long it may take after SIGTERM."""
        if self.args[0] == "worker":
            return parse_duration(self.args[self.args.index("--grace") + 1]) + LAST_S
        return LIMIT_S

    @property
    def port(self) -> str:
        flag = "--metrics-port" if self.args[0] == "worker" else "--port"
        return self.args[self.args.index(flag) + 1]


def of_compose() -> Iterator[Service]:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for one in services.values():
        if one["image"].startswith("genctl:"):
            stop_s = parse_duration(one.get("stop_grace_period", "10s"))
            probe = " ".join(one["healthcheck"].get("test", ()))
            yield Service("compose.yaml", one["command"], one["environment"], frozenset(), stop_s, [probe])


def of_kubernetes() -> Iterator[Service]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
    given = {one["metadata"]["name"]: one.get("stringData") or one["data"] for one in documents if one["kind"] in {"Secret", "ConfigMap"}}  # fmt: skip
    for one in documents:
        if one["kind"] not in {"Deployment", "Job"}:
            continue
        pod = one["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        named = [next(iter(source.items())) for source in container["envFrom"]]
        secrets = frozenset(source["name"] for kind, source in named if kind == "secretRef")
        env = {key: text for _, source in named for key, text in given[source["name"]].items()}
        env |= {more["name"]: more["value"] for more in container.get("env", ())}
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        probes = [f"{kind} {probe['httpGet']['path']} {ports[probe['httpGet']['port']]}" for kind, probe in container.items() if kind.endswith("Probe")]  # fmt: skip
        yield Service("kubernetes.yml", container["args"], env, secrets, pod["terminationGracePeriodSeconds"], probes)  # fmt: skip


def of_ecs() -> Iterator[Service]:
    for path in sorted((DEPLOY / "ecs").iterdir()):
        (container,) = json.loads(path.read_text())["containerDefinitions"]
        env = {one["name"]: one["value"] for one in container.get("environment", ())}
        env |= {one["name"]: None for one in container["secrets"]}
        secrets = frozenset(one["valueFrom"].split(":")[6] for one in container["secrets"])
        probe = " ".join(container.get("healthCheck", {}).get("command", ()))
        yield Service(f"ecs/{path.name}", container["command"], env, secrets, container["stopTimeout"], [probe])  # fmt: skip


def of_systemd() -> Iterator[Service]:
    for path in sorted((DEPLOY / "systemd").iterdir()):
        unit = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        program, *args = unit["ExecStart"].split()
        assert program == "/opt/genctl/env/bin/genctl", "where the image has it, too"
        stop_s = float(unit["TimeoutStopSec"]) if "TimeoutStopSec" in unit else None
        yield Service(path.name, args, {}, frozenset({unit["EnvironmentFile"]}), stop_s, [])


SERVICES = [*of_compose(), *of_kubernetes(), *of_ecs(), *of_systemd()]
services = pytest.mark.parametrize("service", SERVICES, ids=lambda one: f"{one.file} {one.args[0]}")


@services
def test_its_command_line_and_its_settings_are_genctls(service: Service) -> None:
    assert usage_mistake(service.args) is None
    assert service.env.keys() - OF_AWS <= SETTINGS.keys()
    for name, text in service.env.items():
        if name in SETTINGS and text is not None:
            SETTINGS[name].parse(text)


@services
def test_it_may_take_the_time_that_it_needs_to_end(service: Service) -> None:
    if service.args[0] in {"worker", "serve"}:
        assert service.stop_s is not None
        assert service.stop_s >= service.ends_within_s
    if service.args[0] == "worker" and service.file != "compose.yaml":  # its provider is the simulator
        grace_s = service.ends_within_s - LAST_S
        longest = service.env.get("GENCTL_PROVIDER_TIMEOUT") or DEFAULTS["GENCTL_PROVIDER_TIMEOUT"]
        assert grace_s >= parse_duration(str(longest)), "a call may last so long, and is billed"


@services
def test_its_health_is_asked_where_it_listens(service: Service) -> None:
    """A worker and an API; systemd asks nobody, and a migration ends."""
    if service.args[0] == "migrate" or service.file.endswith(".service"):
        return
    assert service.probes
    for probe in service.probes:
        assert probe.endswith(service.port)
        if "genctl" in probe:
            assert usage_mistake(probe.split()[2:]) is None
        else:
            assert probe.split()[1] in {"/healthz", "/readyz"}
    if service.args[0] == "serve" and service.file == "kubernetes.yml":
        assert {probe.split()[0] for probe in service.probes} == {"livenessProbe", "readinessProbe"}


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes.yml", "ecs"])
def test_worker_and_api_get_all_settings_of_the_readme(file: str) -> None:
    """Without GENCTL_IMAGE_HOSTS, for one, the page shows no image that was made."""
    given = {name for service in SERVICES if service.file.startswith(file) for name in service.env}
    assert set(re.findall(r"^\$ export (\w+)=", (ROOT / "README.md").read_text(), re.MULTILINE)) <= given


def test_the_browser_finds_the_images_of_compose_where_the_worker_finds_the_simulator() -> None:
    """The simulator's images have the address by which it was asked; its name means nothing to a browser."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (hosts,) = {
        service["environment"]["GENCTL_IMAGE_HOSTS"] for service in (compose["api"], compose["worker"])
    }
    assert urlsplit(compose["worker"]["environment"]["ARK_BASE_URL"]).netloc == hosts
    assert compose["worker"]["network_mode"] == "service:simulator"
    assert f"{hosts}:{hosts.rpartition(':')[2]}" in compose["simulator"]["ports"]


def test_each_part_has_one_secret_and_no_more_in_it_than_it_needs() -> None:
    for file in {service.file.split("/")[0] for service in SERVICES if service.secrets}:
        parts = [service for service in SERVICES if service.file.startswith(file)]
        assert [len(service.secrets) for service in parts] == [1] * len(parts)
        assert len({name for service in parts for name in service.secrets}) == len(parts)
    for service in SERVICES:
        if service.secrets and service.env:
            hidden = {name for name in service.env if name in SETTINGS and SETTINGS[name].secret}
            needed = {"worker": {"ARK_API_KEY"}, "serve": {"GENCTL_SECRET"}, "migrate": set[str]()}
            assert hidden == {"DATABASE_URL"} | needed[service.args[0]]


def test_the_images_are_of_this_version_and_the_emulator_is_the_one_of_the_tests() -> None:
    text = "".join((ROOT / name).read_text() for name in ("compose.yaml", "deploy/kubernetes.yml"))
    assert set(re.findall(r"image: genctl:(\S+)", text)) == {__version__}
    assert f"genctl-migrate-{__version__}" in text
    (moto,) = re.findall(r"^moto==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"image: motoserver/moto:(\S+)", text)) == {moto}


def test_nothing_is_root_writes_or_has_a_capability_in_kubernetes() -> None:
    for one in yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()):
        if one["kind"] in {"Deployment", "Job"}:
            pod = one["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] == 10001
            confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
            assert pod["containers"][0]["securityContext"] == confined


def test_policies_and_budgets_choose_pods_that_there_are() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
    apps = {one["spec"]["template"]["metadata"]["labels"]["app"] for one in documents if one["kind"] in {"Deployment", "Job"}}  # fmt: skip
    chosen: dict[str, set[str]] = {}
    for one in documents:
        selector = one.get("spec", {}).get("podSelector") or one.get("spec", {}).get("selector", {})
        labels = selector.get("matchLabels", selector)
        if one["kind"] in {"NetworkPolicy", "PodDisruptionBudget", "Service"}:
            values = [labels["app"]] if "app" in labels else selector["matchExpressions"][0]["values"]
            chosen.setdefault(one["kind"], set()).update(values)
    assert chosen == {
        "NetworkPolicy": apps,
        "PodDisruptionBudget": apps - {"genctl-migrate"},
        "Service": {"genctl-api"},
    }


def test_an_answer_that_is_slow_kills_no_streams_and_no_calls() -> None:
    """Kubernetes gives a probe one second unless told otherwise, and a restart costs each stream and each call."""
    for one in yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()):
        for container in one["spec"]["template"]["spec"]["containers"] if one["kind"] == "Deployment" else ():
            for probe in (value for name, value in container.items() if name.endswith("Probe")):
                assert probe["timeoutSeconds"] >= WITHIN_S
            alive = container["livenessProbe"]
            assert alive.get("periodSeconds", 10) * alive["failureThreshold"] >= SILENT_S


def test_the_network_lets_through_what_each_part_needs_and_nothing_in_to_a_migration() -> None:
    """Out: names, SQS and the provider, PostgreSQL, credentials; in: by ports that the pods have."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
    everybody, *others = (one["spec"] for one in documents if one["kind"] == "NetworkPolicy")
    anywhere = {(port.get("protocol", "TCP"), port["port"]) for rule in everybody["egress"] if "to" not in rule for port in rule["ports"]}  # fmt: skip
    assert anywhere == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 5432)}
    assert "ingress" not in everybody
    assert everybody["policyTypes"] == ["Ingress", "Egress"]
    entered = {spec["podSelector"]["matchLabels"]["app"]: [port["port"] for rule in spec["ingress"] for port in rule["ports"]] for spec in others}  # fmt: skip
    pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"}  # fmt: skip
    assert entered == {app: [port["name"] for port in pod["containers"][0]["ports"]] for app, pod in pods.items()}  # fmt: skip


def test_keda_scales_the_worker_and_never_to_none() -> None:
    (_, scaled) = yaml.safe_load_all((DEPLOY / "keda.yml").read_text())
    spec = scaled["spec"]
    (worker,) = [one for one in SERVICES if (one.file, one.args[0]) == ("kubernetes.yml", "worker")]
    assert spec["scaleTargetRef"]["name"] == "genctl-worker"
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    (policy,) = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"]
    assert policy["periodSeconds"] >= worker.ends_within_s
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "aws-sqs-queue"
    assert trigger["metadata"]["queueURL"].endswith(f"/{worker.env['GENCTL_QUEUE']}")
    assert int(trigger["metadata"]["queueLength"]) >= int(worker.args[worker.args.index("--concurrency") + 1])


def test_the_schemas_of_compose_kubernetes_keda_and_github_take_the_files() -> None:
    workflows = [f"github-workflows={path}" for path in (ROOT / ".github/workflows").iterdir()]
    files = ["compose-spec=compose.yaml", "kubernetes=deploy/kubernetes.yml", "keda=deploy/keda.yml"]
    judged("python", "tests/ship/schemas_program.py", *files, *workflows, "github-actions=action.yml")


@pytest.mark.parametrize("part", ["worker", "api", "migrate"])
def test_ecs_takes_the_task_definition(part: str) -> None:
    definition = json.loads((DEPLOY / f"ecs/{part}.json").read_text())
    model = botocore.loaders.Loader().load_service_model("ecs", "service-2")
    shape = botocore.model.ServiceModel(model).operation_model("RegisterTaskDefinition").input_shape
    assert shape
    report = ParamValidator().validate(definition, shape)
    assert not report.has_errors(), report.generate_report()
    assert definition["containerDefinitions"][0]["stopTimeout"] <= FARGATE_STOP_S
    (reading,) = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert definition["containerDefinitions"][0]["user"] == reading


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Where there is a program of that name."""
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    units = []
    for path in (DEPLOY / "systemd").iterdir():
        units.append(tmp_path / path.name)
        units[-1].write_text(path.read_text().replace("/opt/genctl/env/bin/genctl", "/bin/true"))
    done = subprocess.run([verify, "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_terraform_says_the_same_as_cloudformation() -> None:
    """Nobody here has its provider for AWS, so that it is read, not planned."""
    parsed = json.loads(judged("hcl2tojson", "deploy/terraform/main.tf"))
    text = json.dumps(parsed).replace('\\"', "")
    template = (DEPLOY / "cloudformation.yaml").read_text()
    for number in re.findall(r"(?:MessageRetentionPeriod|VisibilityTimeout|maxReceiveCount|Threshold|Period|EvaluationPeriods): (\d+)", template):  # fmt: skip
        assert re.search(rf"\b{number}\b", text), number
    for words in re.findall(r"(?:MetricName|Namespace|AlarmDescription|redrivePermission|ComparisonOperator|TreatMissingData): \"?([^\"\n]*)", template):  # fmt: skip
        assert words in text
    told = (DEPLOY / "terraform/variables.tf").read_text()
    variables = json.loads(judged("hcl2tojson", "deploy/terraform/variables.tf"))["variable"]
    for pattern in re.findall(r'AllowedPattern: "\|?(.*)"', template):
        assert pattern in told
    for one in re.findall(r"AllowedValues: \[(.*)\]", template)[0].split(", "):
        assert f'"{one}"' in told
    declared = {name.strip('"') for one in variables for name in one}
    parameters = re.findall(r"^  (\w+):\n    Description", template, re.MULTILINE)[: len(declared)]
    assert {name.replace("_", "") for name in declared} == {name.lower() for name in parameters}
    assert set(re.findall(r"var\.(\w+)", text)) == declared
    for name in ("iam-${part}.json", "iam-key.json"):
        assert name in text


def test_the_commands_of_the_page_are_genctls() -> None:
    """In a container, in compose, or typed; the others are those of other programs."""
    page = (ROOT / "docs/deploy.md").read_text()
    lines = re.findall(r"^\$ (.*?)(?:  +#.*)?$", page, re.MULTILINE)
    inside = re.compile(rf"(?:docker run .*genctl:{__version__}|docker compose run --rm api|^genctl) (.*)")
    commands = [match[1].replace("--yes", "--yes=").split() for line in lines if (match := inside.search(line))]  # fmt: skip
    assert len(commands) == 8
    assert [words for words in commands if usage_mistake(words)] == []
    for file in re.findall(r"(?:--filename|--template-file|file:/|-f) ?/?(deploy/\S+)", page):
        assert (ROOT / file).exists(), file
