"""Errors that a person is meant to read; the exit code of each is decided here alone."""


class StepstreamError(Exception):
    """Something went wrong that the message explains."""

    exit_code = 1


class ConfigurationError(StepstreamError):
    """A setting is missing or wrong."""

    exit_code = 2


class UsageError(StepstreamError):
    """What was asked for makes no sense."""

    exit_code = 2


class MismatchError(StepstreamError):
    """Figures that must be equal are not."""

    exit_code = 3


class RefusedError(StepstreamError):
    """Not done, because it would do harm now."""

    exit_code = 4


class MigrationError(StepstreamError):
    """The database's schema cannot be brought to what this version needs."""


class BrokenProducerError(StepstreamError):
    """So many events are refused that the producer, or this database, must be wrong."""

    exit_code = 5


class BatchFailedError(StepstreamError):
    """A batch could not be applied; nothing of it was committed."""
