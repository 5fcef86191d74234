"""What both consumers share: reading Kafka, positions kept with the data, and how far everything is."""
