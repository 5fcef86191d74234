"""From the outbox to Kafka: in order per key, and gone only when acknowledged."""
