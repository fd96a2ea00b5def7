output "queue_url" {
  description = "GENCTL_QUEUE"
  value       = aws_sqs_queue.jobs.id
}

output "dead_letter_queue_url" {
  description = "GENCTL_DLQ, which the redrive policy names, too"
  value       = aws_sqs_queue.dead_letters.id
}

output "role_arns" {
  description = "The roles of worker, api and operator"
  value       = { for part, role in aws_iam_role.this : part => role.arn }
}
