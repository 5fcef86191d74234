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


class MigrationError(StepstreamError):
    """The database's schema cannot be brought to what this version needs."""


class RefusedError(StepstreamError):
    """What was asked for is not done in this state; nothing was changed."""

    exit_code = 4


class StoppedError(StepstreamError):
    """Somebody ended it by a signal; what was done by then was told."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as a shell says it of whoever a signal has ended
