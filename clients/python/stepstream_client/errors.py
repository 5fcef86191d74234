"""What can go wrong with an event, as a small tree of errors."""

from typing import Final

from stepstream_client.contract import EventError, advice_on

#: Classes of the HTTP route that the contract does not have, and what to do about them.
_OF_HTTP: Final = {
    "type-not-allowed": "The key may not send this type: ask for one that may.",
    "server-not-allowed": "The key may not send for this server: ask for one that may.",
    "ambiguous-server": "Name the server: the organization has more than one.",
    "too-large": "Send smaller events: 32 KB is the most.",
}


class ClientError(Exception):
    """Base of all errors of this package."""


class Refused(ClientError):
    """It is not what it has to be, and sending it again changes nothing.

    Attributes:
        rejection: the class of the error, as a dead letter carries it: `invalid-event`, say.
        field: the first field that is wrong; None where no single one is.
        message: what is wrong with it.
        cause: what was probably done; None where nothing is known.
    """

    def __init__(
        self, rejection: str, message: str, *, field: str | None = None, cause: str | None = None
    ) -> None:
        super().__init__(f"{rejection}: {message}" + (f"; {cause}" if cause else ""))
        self.rejection = str(rejection)
        self.message = message
        self.field = field
        self.cause = cause

    @property
    def advice(self) -> str:
        """What to do about errors of this class, in a sentence or two."""
        return _OF_HTTP.get(self.rejection) or advice_on(self.rejection)


class InvalidEvent(Refused, ValueError):
    """It is no event that counts."""

    @classmethod
    def of(cls, error: EventError) -> "InvalidEvent":
        """As the contract says it."""
        fields = error.fields
        return cls(
            error.rejection,
            error.told,
            field=fields[0] if fields else None,
            cause="; ".join(error.causes) or None,
        )


class NotAcknowledged(ClientError):
    """Whether it has arrived is not known, or it has not: sending it again is safe, as the id is the same."""

    def __init__(self, reason: str, event_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.event_id = event_id


class NotInTime(NotAcknowledged):
    """Nobody acknowledged it within the time."""


class NotAllowed(NotAcknowledged):
    """The key is unknown, or may not do this: nothing was taken."""


class ProducerClosed(ClientError):
    """The producer was closed before."""


class BufferFull(ClientError):
    """So many events are on their way that there is no room for one more: it was not taken."""
