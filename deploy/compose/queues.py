"""Create the stack of deploy/cloudformation.yaml on the AWS of compose.yaml, if it is not there yet."""

import pathlib
import sys

import boto3
from botocore.config import Config

# moto answers once all is made; on a slow machine boto3 would ask again before that
aws = boto3.client("cloudformation", config=Config(read_timeout=300))
template = pathlib.Path(sys.argv[1]).read_text()
try:
    aws.create_stack(StackName="genctl", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])
except aws.exceptions.AlreadyExistsException:
    print("the queues are there")
else:
    print("the queues were created")
