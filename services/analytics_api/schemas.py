"""Schemas of arguments as small as they can be: an agent reads all of them before it asks anything."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

#: What an agent need not know before it asks: an argument that breaks it is answered with what is wrong.
_UNSAID: Final = {"title", "pattern", "minLength", "maxLength", "maxItems", "minimum", "maximum", "default"}
#: Said in fewer words than over HTTP; not at all, where the answers that lead to it say it.
_IN_SHORT: Final = {
    "max_bytes": "",
    "offset": "",
    "server": "Ids or names.",
    "from": "Began on it or later, UTC.",
    "to": "Or before.",
    "active_days": "",
    "version": "Began with it.",
    "version_a": "",
    "version_b": "",
    "segment": "",
    "segment_a": "",
    "segment_b": "",
    "within_days": "Judged after so long.",
    "days": "Of each of two periods.",
    "start_at": "Who did it, from it on.",
    "end_at": "Who did it, up to it.",
    "exclude": "Steps left out.",
    "through": "As `2:wts_a`: that step there; of several, any.",
    "positions": "So many; then it ends as `went_on`.",
    "nodes": "So many steps at a position; the rest is folded.",
    "min_share": "Fold steps with less than this share of all.",
    "unfold": "Positions without folding.",
    "times": "Also median and 90th percentile of each link; slower.",
    "position": "Those with a step there.",
    "step": "At `position`, or last with `ended_after`.",
    "from_step": "Before `position`, one of these.",
    "next_step": "Unfinished ones that stand at it.",
    "skipped": "Whether the step there was skipped.",
    "ended_after": "Who stands after so many steps.",
    "outcome": "",
    "path": "All steps, as `done:wts_a` or `skipped:wts_a`.",
    "active_from": "Last active then or later, UTC.",
    "active_to": "Or before.",
    "limit": "",
    "after": "`next` of the page before.",
    "server_a": "",
    "from_a": "First day.",
    "to_a": "Last day.",
    "server_b": "",
    "from_b": "",
    "to_b": "",
    "walkthrough_id": "Id or title.",
}


def slim_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model's arguments, without references and what validation says as well."""
    schema = model.model_json_schema()
    properties = {
        name: _slim(field, schema.get("$defs", {})) for name, field in schema.get("properties", {}).items()
    }
    for name in _IN_SHORT.keys() & properties.keys():
        properties[name].pop("description", None)
        if short := _IN_SHORT[name]:
            properties[name]["description"] = short
    slim: dict[str, Any] = {"type": "object", "properties": properties}
    if required := schema.get("required"):
        slim["required"] = required
    return slim


def _slim(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in field:
        field = {**definitions[field["$ref"].rpartition("/")[2]], **field}
    if "anyOf" in field:
        (one,) = [branch for branch in field["anyOf"] if branch.get("type") != "null"]
        field = {**one, **field}
    slim = {
        name: value for name, value in field.items() if name not in _UNSAID and name not in {"$ref", "anyOf"}
    }
    if "items" in slim:
        slim["items"] = {k: v for k, v in _slim(slim["items"], definitions).items() if k != "description"}
    return slim
