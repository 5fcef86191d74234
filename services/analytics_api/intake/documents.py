"""JSON Schema of an event as it comes in by HTTP, for the OpenAPI document."""

from typing import Any, Final

from schemas import StepCompleted, StepShown, StepSkipped, WalkthroughStarted
from services.analytics_api.registering import MOST_OWN_ID

_MODELS: Final = (StepCompleted, WalkthroughStarted, StepSkipped, StepShown)
#: The producer's own ids, in the place of the platform's.
_OWN_IDS: Final = {
    "distinct_id": "Your own id of the person, in place of `mcp_server_user_id`.",
    "session_id": "Your own id of the session, in place of `mcp_server_session_id`.",
}
_MAY_BE_LEFT_OUT: Final = frozenset({"mcp_server_user_id", "mcp_server_session_id", "mcp_server_id"})


def event_schema() -> dict[str, Any]:
    """An event of a producer, with ids of its own or the platform's, with its server or without."""
    return {"oneOf": [_of(model.model_json_schema()) for model in _MODELS]}


def _of(schema: dict[str, Any]) -> dict[str, Any]:
    own = {
        name: {"type": "string", "minLength": 1, "maxLength": MOST_OWN_ID, "description": description}
        for name, description in _OWN_IDS.items()
    }
    required = [name for name in schema["required"] if name not in _MAY_BE_LEFT_OUT]
    return {**schema, "properties": {**schema["properties"], **own}, "required": required}
