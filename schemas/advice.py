"""What to do about refused events: one sentence or two for each class, for whoever writes the producer."""

from collections.abc import Mapping
from typing import Final

from schemas.events import Rejection

_SEND_AGAIN: Final = "Once the row is there, an operator can send what was refused again."

ADVICE: Final[Mapping[str, str]] = {
    Rejection.EMPTY: "Send the event as the record's value. A record without a value deletes nothing here.",
    Rejection.NOT_JSON: "Send one JSON object in UTF-8 as the value, with nothing before or after it: "
    "no byte order mark, no schema registry prefix.",
    Rejection.UNKNOWN_TYPE: "Set `type` to one that the JSON Schema of the contract has; case matters.",
    Rejection.INVALID: "Correct the field that the message names; the JSON Schema of the contract says what "
    "it may hold.",
    Rejection.IN_THE_FUTURE: "Send times in milliseconds since the epoch, and check the producer's clock: "
    "24 hours ahead is the most.",
    Rejection.TOO_EARLY: "Send times in milliseconds since the epoch, not in seconds; none is before the "
    "year 2000.",
    Rejection.NOT_ALLOWED: "Only an operator decides about a person: `stepstream erase` and `stepstream "
    "completions` send such events.",
    Rejection.REUSED_EVENT_ID: "Give each event an `event_id` of its own, and every copy of it the same.",
    Rejection.UNKNOWN_USER: "Send events after the row of `mcp_server_user` is committed, with its id. An id "
    "of your own (`distinct_id`) is none: registering it tells the id. " + _SEND_AGAIN,
    Rejection.UNKNOWN_WALKTHROUGH: "Check the walkthrough's id: it was never there, or the walkthrough was "
    "deleted. " + _SEND_AGAIN,
    Rejection.UNKNOWN_STEP: "Check the step's id: it was never there, or the step was deleted. "
    + _SEND_AGAIN,
    Rejection.UNKNOWN_SERVER: "Send the id of the MCP server, not its slug or name. " + _SEND_AGAIN,
    Rejection.UNKNOWN_SESSION: "Send events after the row of `mcp_server_session` is committed, with its id. "
    "An id of your own (`session_id`) is none: registering it tells the id. " + _SEND_AGAIN,
    Rejection.STEP_OF_ANOTHER_WALKTHROUGH: "Send the step together with the walkthrough that it belongs to.",
    Rejection.SERVER_OF_ANOTHER_ORGANIZATION: "Send a server and a walkthrough of the same organization.",
    Rejection.SESSION_OF_ANOTHER_SERVER: "Send the server on which the session was opened.",
    Rejection.SESSION_OF_ANOTHER_USER: "Send the user whose session it is.",
    Rejection.REFUSED_BY_DATABASE: "Ask an operator: a constraint that the platform added, which the message "
    "names, refuses the row.",
}


def advice_on(rejection: str) -> str:
    """What to do about a class of refused events; in general, about one that this version does not know."""
    return ADVICE.get(rejection, "Correct what the message names.")
