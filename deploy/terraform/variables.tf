variable "queue_name" {
  description = "The job queue, as GENCTL_QUEUE names it; its DLQ gets -dlq behind it."
  type        = string
  default     = "seedream4-jobs"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,76}$", var.queue_name))
    error_message = "The name of a queue has 1 to 76 letters, digits, - and _."
  }
}

variable "key_arn" {
  description = "A KMS key of yours that encrypts both queues; empty: SQS encrypts them with a key of its own."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(|arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/.+)$", var.key_arn))
    error_message = "The key is the ARN of a key, or nothing."
  }
}

variable "alarm_topic_arn" {
  description = "An SNS topic that hears of the alarms; empty: they are only shown."
  type        = string
  default     = ""
}

variable "dead_letters" {
  description = "So many messages in the DLQ are an alarm. Each refused job leaves one, so 1 is too few."
  type        = number
  default     = 1000
}

variable "runs_on" {
  description = "Who runs worker and API, and so takes their roles."
  type        = string
  default     = "ecs-tasks.amazonaws.com"

  validation {
    condition     = contains(["ecs-tasks.amazonaws.com", "ec2.amazonaws.com", "pods.eks.amazonaws.com"], var.runs_on)
    error_message = "ECS, EC2 or the pods of EKS run worker and API."
  }
}
