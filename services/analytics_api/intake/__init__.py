"""What comes in by HTTP: events of systems that have no Kafka client, people and sessions."""
