"""What the services share: settings, database, Kafka, telemetry, and the shell of a process."""
