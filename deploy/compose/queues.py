"""Create the stack of deploy/cloudformation.yaml on the AWS of compose.yaml, if it is not there yet."""

import pathlib
import sys

import boto3

aws = boto3.client("cloudformation")
template = pathlib.Path(sys.argv[1]).read_text()
try:
    aws.create_stack(StackName="genctl", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])
except aws.exceptions.AlreadyExistsException:
    print("the queues are there")
else:
    print("the queues were created")
