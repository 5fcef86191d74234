"""Kafka and PostgreSQL as child processes: no Docker, no root, nothing to install by hand."""

from services.devstack.stack import Addresses, StackError, down, status, up

__all__ = ["Addresses", "StackError", "down", "status", "up"]
