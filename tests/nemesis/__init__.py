"""Faults drawn from a seed against real processes, Kafka and PostgreSQL; then plain SQL says what was lost.

`plan` draws, `faults` break and heal, `workload` writes and reads, `history` notes what was acknowledged, `checker`
judges, `rounds` puts a round together. Nothing of the project's own verification is used.
"""
