# The queue pair of one tool of genctl, its alarms, and what worker, API and operator may do with it: the same as
# deploy/cloudformation.yaml. The policies are the files beside it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  parts   = toset(["worker", "api", "operator"])
  account = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}:root"

  # deploy/iam-PART.json, about these queues
  policies = {
    for part in local.parts : part => replace(
      replace(
        file("${path.module}/../iam-${part}.json"),
        "arn:aws:sqs:REGION:ACCOUNT:seedream4-jobs-dlq", aws_sqs_queue.dead_letters.arn
      ),
      "arn:aws:sqs:REGION:ACCOUNT:seedream4-jobs", aws_sqs_queue.jobs.arn
    )
  }
}

resource "aws_sqs_queue" "dead_letters" {
  name                      = "${var.queue_name}-dlq"
  message_retention_seconds = 1209600 # the longest; SQS counts from the moment the job was sent
  sqs_managed_sse_enabled   = var.key_arn == "" ? true : null
  kms_master_key_id         = var.key_arn == "" ? null : var.key_arn

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_sqs_queue" "jobs" {
  name                       = var.queue_name
  message_retention_seconds  = 345600 # longer than GENCTL_QUEUED_TIMEOUT
  visibility_timeout_seconds = 30     # the worker's lease, which it renews
  sqs_managed_sse_enabled    = var.key_arn == "" ? true : null
  kms_master_key_id          = var.key_arn == "" ? null : var.key_arn

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = 50 # a worker that steps aside or crashes raises the count, too
  })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_sqs_queue_redrive_allow_policy" "jobs_only" {
  queue_url = aws_sqs_queue.dead_letters.id
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.jobs.arn]
  })
}

resource "aws_sqs_queue_policy" "only_by_tls" {
  for_each  = { jobs = aws_sqs_queue.jobs, dead_letters = aws_sqs_queue.dead_letters }
  queue_url = each.value.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyByTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = each.value.arn
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = {
    dead-letters-pile-up = {
      queue     = aws_sqs_queue.dead_letters.name, metric = "ApproximateNumberOfMessagesVisible"
      threshold = var.dead_letters, period = 300, periods = 1
      told      = "Many jobs have failed: genctl dlq list --group-by code"
    }
    dead-letters-get-old = {
      queue     = aws_sqs_queue.dead_letters.name, metric = "ApproximateAgeOfOldestMessage"
      threshold = 864000, period = 3600, periods = 1
      told      = "SQS drops dead letters after 14 days: genctl dlq export"
    }
    jobs-wait = {
      queue     = aws_sqs_queue.jobs.name, metric = "ApproximateAgeOfOldestMessage"
      threshold = 900, period = 300, periods = 3
      told      = "The oldest job waits for 15 minutes: genctl status"
    }
  }
  alarm_name          = "${var.queue_name}-${each.key}"
  alarm_description   = each.value.told
  namespace           = "AWS/SQS"
  metric_name         = each.value.metric
  dimensions          = { QueueName = each.value.queue }
  statistic           = "Maximum"
  period              = each.value.period
  evaluation_periods  = each.value.periods
  threshold           = each.value.threshold
  comparison_operator = "GreaterThanOrEqualToThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]
}

resource "aws_iam_role" "this" {
  for_each    = local.parts
  name_prefix = "${substr(var.queue_name, 0, 24)}-${each.key}-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = each.key == "operator" ? { AWS = local.account } : { Service = var.runs_on }
      Action    = each.key == "operator" ? ["sts:AssumeRole"] : ["sts:AssumeRole", "sts:TagSession"]
    }]
  })
}

resource "aws_iam_role_policy" "queues" {
  for_each = local.policies
  role     = aws_iam_role.this[each.key].name
  name     = "queues"
  policy   = each.value
}

resource "aws_iam_role_policy" "key" {
  for_each = var.key_arn == "" ? toset([]) : local.parts
  role     = aws_iam_role.this[each.key].name
  name     = "key-of-the-queues"
  policy = replace(
    replace(file("${path.module}/../iam-key.json"), "arn:aws:kms:REGION:ACCOUNT:key/KEY", var.key_arn),
    "REGION", data.aws_region.this.name
  )
}
