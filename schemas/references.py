"""What an event refers to: which rows have to be there, and to what each of them has to belong."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.events import OfStep, Rejection, WalkthroughStarted


@dataclass(frozen=True, slots=True)
class Known:
    """The rows that exist, of those that events refer to, and what each belongs to."""

    users: Container[str]
    #: The server of each session, None where it has none any more, and its user, None where it has none yet.
    sessions: Mapping[str, tuple[str | None, str | None]]
    #: The organization of each server, and of each walkthrough.
    servers: Mapping[str, str]
    walkthroughs: Mapping[str, str]
    #: The walkthrough of each step.
    steps: Mapping[str, str]


class Problem(NamedTuple):
    """What is wrong with a reference, and in which field."""

    rejection: Rejection
    field: str
    message: str


def problems_with(event: OfStep | WalkthroughStarted, known: Known) -> Sequence[Problem]:
    """All that is wrong, from the outside in; the event's class is that of the first.

    What a row belongs to is asked only where both rows exist. A session without a user is everybody's: the
    platform makes sessions before it knows who is there. Whether the server still offers the walkthrough is
    not asked: it may have, when it happened.
    """
    if _holds_together(event, known):
        return ()
    user, walkthrough, server = event.mcp_server_user_id, event.walkthrough_id, event.mcp_server_id
    step = event.step_id if isinstance(event, OfStep) else None
    of_step = known.steps.get(step, walkthrough) if step is not None else walkthrough
    of_server = known.servers.get(server)
    of_walkthrough = known.walkthroughs.get(walkthrough)
    session_server, session_user = known.sessions.get(event.mcp_server_session_id, (server, None))
    checks = (
        (user in known.users, Rejection.UNKNOWN_USER),
        (walkthrough in known.walkthroughs, Rejection.UNKNOWN_WALKTHROUGH),
        (step is None or step in known.steps, Rejection.UNKNOWN_STEP),
        (of_step == walkthrough, Rejection.STEP_OF_ANOTHER_WALKTHROUGH),
        (server in known.servers, Rejection.UNKNOWN_SERVER),
        (event.mcp_server_session_id in known.sessions, Rejection.UNKNOWN_SESSION),
        (
            of_server == of_walkthrough or None in {of_server, of_walkthrough},
            Rejection.SERVER_OF_ANOTHER_ORGANIZATION,
        ),
        (session_server == server or server not in known.servers, Rejection.SESSION_OF_ANOTHER_SERVER),
        (session_user in {None, user}, Rejection.SESSION_OF_ANOTHER_USER),
    )
    return [Problem(rejection, *_MESSAGES[rejection]) for holds, rejection in checks if not holds]


def _holds_together(event: OfStep | WalkthroughStarted, known: Known) -> bool:
    """Whether all that an event refers to is there and belongs together, in one look: most events do."""
    server, walkthrough = event.mcp_server_id, event.walkthrough_id
    session_server, session_user = known.sessions.get(event.mcp_server_session_id, (None, None))
    organization = known.servers.get(server)
    return (
        session_server == server
        and (session_user is None or session_user == event.mcp_server_user_id)
        and event.mcp_server_user_id in known.users
        and organization is not None
        and organization == known.walkthroughs.get(walkthrough)
        and (not isinstance(event, OfStep) or known.steps.get(event.step_id) == walkthrough)
    )


#: The field that is wrong, and how.
_MESSAGES: Final = {
    Rejection.UNKNOWN_USER: ("mcp_server_user_id", "there is no such user"),
    Rejection.UNKNOWN_WALKTHROUGH: ("walkthrough_id", "there is no such walkthrough"),
    Rejection.UNKNOWN_STEP: ("step_id", "there is no such step"),
    Rejection.STEP_OF_ANOTHER_WALKTHROUGH: ("step_id", "the step belongs to another walkthrough"),
    Rejection.UNKNOWN_SERVER: ("mcp_server_id", "there is no such server"),
    Rejection.UNKNOWN_SESSION: ("mcp_server_session_id", "there is no such session"),
    Rejection.SERVER_OF_ANOTHER_ORGANIZATION: (
        "mcp_server_id",
        "the server belongs to another organization than the walkthrough",
    ),
    Rejection.SESSION_OF_ANOTHER_SERVER: (
        "mcp_server_session_id",
        "the session belongs to another server",
    ),
    Rejection.SESSION_OF_ANOTHER_USER: ("mcp_server_session_id", "the session belongs to another user"),
}
