"""The CloudFormation template makes a queue pair on which genctl works, and allows each part what it needs."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from tests.kit import free_port, until_sync
from tests.process.place import Place, Running, clean_env
from tests.ship.judges import DEPLOY, ROOT, judged, program

from genctl.domain.findings import ENOUGH_RECEIVES
from genctl.domain.rights import OF_KEY
from genctl.run import LEASE_S

TEMPLATE = DEPLOY / "cloudformation.yaml"
PARTS = ("Worker", "Api", "Operator")
REGION, ACCOUNT, KEY = "us-east-1", "123456789012", "11111111-2222-3333-4444-555555555555"
KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY}"


class Template(yaml.SafeLoader):
    """Reads a template; `!GetAtt A.B` is the text A.B."""


def _function(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


Template.add_multi_constructor("!", _function)


class Aws:
    """The emulator of compose.yaml, which takes templates, and ways to ask it."""

    def __init__(self, port: int) -> None:
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }
        self._port = port

    @cache  # noqa: B019 - it lives as long as the tests of this module
    def ask(self, service: str, region: str = REGION) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]  # any of them
            region_name=region,
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @contextmanager
    def checking_rights(self) -> Iterator[None]:
        """From the first call on, as long as this lasts: moto counts calls that it lets pass."""
        url, plain = f"{self.env['AWS_ENDPOINT_URL']}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(url, data=b"0", headers=plain)).close()
        yield
        urlopen(Request(url, data=b"inf", headers=plain)).close()

    def create(self, stack: str, region: str = REGION, **parameters: str) -> dict[str, str]:
        """A stack from the template; its outputs."""
        formation = self.ask("cloudformation", region)
        given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        formation.create_stack(
            StackName=stack,
            TemplateBody=TEMPLATE.read_text(),
            Parameters=given,
            Capabilities=["CAPABILITY_IAM"],
        )
        return self.outputs(stack, region)

    def outputs(self, stack: str, region: str = REGION) -> dict[str, str]:
        (found,) = self.ask("cloudformation", region).describe_stacks(StackName=stack)["Stacks"]
        assert found["StackStatus"].endswith("_COMPLETE"), found
        return {one["OutputKey"]: one["OutputValue"] for one in found["Outputs"]}

    def attributes(self, queue: str, region: str = REGION) -> dict[str, str]:
        sqs = self.ask("sqs", region)
        url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        facts: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return facts


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """With the stack that compose.yaml's program has made, which finds it the next time."""
    port, folder = free_port(), tmp_path_factory.mktemp("aws")
    command = (program("moto_server"), "--host", "127.0.0.1", "--port", str(port))
    with Running.start(*command, env=clean_env(folder), folder=folder) as server:
        until_sync(lambda: "Running on" in "".join(server.texts()), within_s=60)
        aws = Aws(port)
        compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
        making = [word.removeprefix("/") for word in compose["queues"]["entrypoint"]]
        assert judged(*making, **aws.env) == "the queues were created\n"
        assert judged(*making, **aws.env) == "the queues are there\n"
        yield aws


@pytest.fixture
def account(place: Place, aws: Aws) -> Place:
    """A terminal whose settings lead to that account, and to nothing else of AWS."""
    place.make_real()
    place.env |= {"AWS_ENDPOINT_URL_SQS": aws.env["AWS_ENDPOINT_URL"], "GENCTL_QUEUE": "seedream4-jobs"}
    place.env |= {"GENCTL_SECRET": "x" * 32, "ARK_API_KEY": "test"}
    place.env |= {name: value for name, value in aws.env.items() if "ENDPOINT" not in name}
    return place


def policies(aws: Aws, role_arn: str) -> list[list[dict[str, Any]]]:
    """The statements of each policy that a role has."""
    iam = aws.ask("iam")
    attached = iam.list_attached_role_policies(RoleName=role_arn.rpartition("/")[2])["AttachedPolicies"]
    found = []
    for policy in attached:
        arn = policy["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        found.append(document["Statement"])
    return found


def written(name: str, queue: str = "seedream4-jobs") -> list[dict[str, Any]]:
    """The statements of deploy/iam-NAME.json for this account."""
    text = (DEPLOY / f"iam-{name.lower()}.json").read_text()
    for word, value in {"REGION": REGION, "ACCOUNT": ACCOUNT, "KEY": KEY, "seedream4-jobs": queue}.items():
        text = re.sub(rf"\b{word}\b", value, text)
    statements: list[dict[str, Any]] = json.loads(text)["Statement"]
    return statements


def test_cfn_lint_has_nothing_against_the_template() -> None:
    judged("cfn-lint", "--regions", "us-east-1", "--regions", "cn-north-1", "--", str(TEMPLATE))


def test_doctor_and_a_job_are_content_with_what_the_template_made(account: Place) -> None:
    found = account.genctl("doctor", exit_code=1)["findings"]  # no API serves here
    judged_sqs = {one["check"]: one for one in found if one["check"] in {"sqs", "redrive", "retention", "visibility", "permissions"}}  # fmt: skip
    assert {name: one["level"] for name, one in judged_sqs.items()} == dict.fromkeys(judged_sqs, "ok")
    assert judged_sqs.keys() >= {"sqs", "redrive", "retention", "visibility"}
    order = account.genctl("enqueue", "--prompt", "a nude", "--scenario", "sensitive-text", "--grant", "10")
    account.say("worker", "--drain")
    assert account.row(order["sessionId"])["status"] == "failed"
    assert [copy["sessionId"] for copy in account.genctl("dlq", "list")["messages"]] == [order["sessionId"]]
    assert account.genctl("refunds", "check")["violations"] == []


def test_the_queues_are_as_the_code_wants_them(aws: Aws) -> None:
    facts = aws.attributes("seedream4-jobs")
    assert json.loads(facts["RedrivePolicy"])["maxReceiveCount"] >= ENOUGH_RECEIVES
    assert int(facts["VisibilityTimeout"]) == LEASE_S
    for queue in ("seedream4-jobs", "seedream4-jobs-dlq"):
        assert aws.attributes(queue)["SqsManagedSseEnabled"] == "true"


def test_the_policies_of_the_template_are_those_of_the_files(aws: Aws) -> None:
    """With a key of one's own: each part gets the policy for it, too."""
    aws.create("keyed", QueueName="keyed-jobs", KeyArn=KEY_ARN)
    made = aws.outputs("keyed")
    for part in PARTS:
        expected = [written(part, "keyed-jobs"), written("key")]
        assert sorted(policies(aws, made[f"{part}RoleArn"]), key=str) == sorted(expected, key=str)
    assert aws.attributes("keyed-jobs-dlq")["KmsMasterKeyId"] == KEY_ARN
    assert policies(aws, aws.outputs("genctl")["ApiRoleArn"]) == [written("api")], "without a key"


def test_the_policies_allow_the_calls_that_genctl_makes_and_no_others() -> None:
    """SQS asks for the right of the single call where a batch is sent."""
    source = (ROOT / "src/genctl/edges/sqs.py").read_text()
    calls = {name.removesuffix("Batch") for name in re.findall(r'"((?:Get|Send|Receive|Delete|Change)[A-Z]\w+)"', source)}  # fmt: skip
    assert {f"sqs:{name}" for name in calls} == {
        action for statement in written("operator") for action in statement["Action"]
    }
    assert [one["Action"] for one in written("key")] == [[*OF_KEY]]


def test_a_template_deployed_twice_changes_nothing(aws: Aws, account: Place) -> None:
    account.send('{"a":"job"}')
    before = aws.attributes("seedream4-jobs")
    with pytest.raises(ClientError, match="genctl.* already exists"):
        aws.create("genctl")
    aws.ask("cloudformation").update_stack(
        StackName="genctl", TemplateBody=TEMPLATE.read_text(), Capabilities=["CAPABILITY_IAM"]
    )
    assert aws.attributes("seedream4-jobs") == before


def test_another_region_gets_a_pair_of_its_own_and_genctl_takes_none_for_the_other(
    aws: Aws, account: Place
) -> None:
    made = aws.create("genctl", "eu-west-1", QueueName="western-jobs")
    assert ":eu-west-1:" in aws.attributes("western-jobs", "eu-west-1")["QueueArn"]
    account.env["GENCTL_QUEUE"] = made["QueueUrl"]
    assert account.error("dlq", "list", exit_code=3)["fix"] == "export AWS_DEFAULT_REGION=eu-west-1"
    account.env["GENCTL_QUEUE"] = "western-jobs"
    assert account.error("dlq", "list", exit_code=3)["code"] == "QueueNotFound"


def test_a_queue_that_exists_stays_as_it_is(aws: Aws) -> None:
    sqs = aws.ask("sqs")
    url = sqs.create_queue(QueueName="taken-jobs", Attributes={"VisibilityTimeout": "77"})["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="a job")
    with pytest.raises(ClientError, match="already exists"):
        aws.create("taking", QueueName="taken-jobs")
    facts = aws.attributes("taken-jobs")
    assert (facts["VisibilityTimeout"], facts["ApproximateNumberOfMessages"]) == ("77", "1")


def test_the_queues_outlive_their_stack_but_not_a_creation_that_failed() -> None:
    """A DLQ that a failed creation has left would make the next one fail."""
    template = yaml.load(TEMPLATE.read_text(), Loader=Template)
    queues = [one for one in template["Resources"].values() if one["Type"] == "AWS::SQS::Queue"]
    assert len(queues) == 2
    for queue in queues:
        assert (queue["DeletionPolicy"], queue["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_alarms_are_about_the_dlqs_depth_and_the_age_of_the_oldest_in_both() -> None:
    """The emulator knows no alarms; the DLQ's is due before SQS drops the message."""
    resources = yaml.load(TEMPLATE.read_text(), Loader=Template)["Resources"]
    alarms = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::CloudWatch::Alarm"]
    about = {(one["MetricName"], one["Dimensions"][0]["Value"]): one["Threshold"] for one in alarms}
    assert about.keys() == {
        ("ApproximateNumberOfMessagesVisible", "DeadLetterQueue.QueueName"),
        ("ApproximateAgeOfOldestMessage", "DeadLetterQueue.QueueName"),
        ("ApproximateAgeOfOldestMessage", "JobQueue.QueueName"),
    }
    kept_s = resources["DeadLetterQueue"]["Properties"]["MessageRetentionPeriod"]
    assert about["ApproximateAgeOfOldestMessage", "DeadLetterQueue.QueueName"] < kept_s


def test_without_rights_one_line_says_so_and_nothing_is_made(aws: Aws) -> None:
    iam = aws.ask("iam")
    iam.create_user(UserName="stranger")
    key = iam.create_access_key(UserName="stranger")["AccessKey"]
    stranger = boto3.client(
        "cloudformation",
        region_name=REGION,
        endpoint_url=aws.env["AWS_ENDPOINT_URL"],
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )
    with aws.checking_rights(), pytest.raises(ClientError) as refused:
        stranger.create_stack(StackName="refused", TemplateBody=TEMPLATE.read_text())
    assert "stranger is not authorized to perform: cloudformation:CreateStack" in str(refused.value)
    assert "\n" not in str(refused.value)
    stacks = aws.ask("cloudformation").list_stacks()["StackSummaries"]
    assert "refused" not in {stack["StackName"] for stack in stacks}
