"""The generated documents: JSON Schema, AsyncAPI, and key-to-partition vectors, as plain values."""

from collections.abc import Mapping
from typing import Any, Final, get_args

from aiokafka.partitioner import DefaultPartitioner
from pydantic.json_schema import GenerateJsonSchema

from schemas.events import DEAD_LETTER_SUFFIX, EVENT, OPERATOR_SOURCES, TOPIC, AnyEvent, Rejection

JSON_SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

#: Partitions of topics that `stepstream migrate` makes, unless it is told otherwise.
TOPIC_PARTITIONS: Final = 6
#: Keys of any script and length; a client that computes these partitions agrees with Kafka's default.
VECTOR_KEYS: Final = (
    "mcpu_a1B2c3D4e5F6",
    "mcpu_000000000000",
    "a",
    "ab",
    "abc",
    "abcd",
    "user with spaces",
    "naïve-café",
    "Zoë",
    "Ærøskøbing",
    "Владимир",
    "Ελένη",
    "山田太郎",
    "서울-사용자",
    "مستخدم",
    "उपयोगकर्ता",
    "👩🏽‍💻",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 is not \u00e9",
    "ÿ" * 64,
    "x" * 64,
)
VECTOR_PARTITIONS: Final = (1, 6, 12)


def json_schema() -> dict[str, Any]:
    """The closed schema that producers are held to; consumers ignore fields they do not know.

    Each type has its own branch, so that an error names the field of that type and not the whole event.
    """
    definitions = _definitions()
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": schema_id("event"),
        "title": f"Events of {TOPIC}",
        "description": "The value of a record: one UTF-8 JSON object.",
        "type": "object",
        "properties": {"type": {"type": "string", "enum": [_type(d) for d in definitions.values()]}},
        "required": ["type"],
        "allOf": [
            {
                "if": {
                    "type": "object",
                    "properties": {"type": {"const": _type(definition)}},
                    "required": ["type"],
                },
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name, definition in definitions.items()
        ],
        "$defs": definitions,
    }


def schemas_of_types() -> dict[str, dict[str, Any]]:
    """For each type of event a schema of its own, which needs no other one."""
    return {
        _type(definition): {
            "$schema": JSON_SCHEMA_DIALECT,
            "$id": schema_id(_type(definition)),
            "title": name,
            **definition,
        }
        for name, definition in _definitions().items()
    }


def schema_id(name: str) -> str:
    """The absolute name of a schema: it says what it is, and nothing is fetched from there."""
    return f"urn:stepstream:schema:{name}:1"


def _definitions() -> dict[str, dict[str, Any]]:
    """By the name of the model, in the order of the contract."""
    found = EVENT.json_schema(schema_generator=GenerateJsonSchema)["$defs"]
    return {model.__name__: _closed(found[model.__name__]) for model in get_args(AnyEvent)}


def _closed(definition: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: _of_field(schema) for name, schema in definition["properties"].items()}
    return {**definition, "properties": properties, "additionalProperties": False}


def _of_field(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without title and default. What may be null says so in one `type`, so that an error is one."""
    kept = {name: value for name, value in schema.items() if name not in {"title", "default", "anyOf"}}
    if "anyOf" not in schema:
        return kept
    value, _ = schema["anyOf"]
    return {**value, **kept, "type": [value["type"], "null"]}


def _type(definition: Mapping[str, Any]) -> str:
    return str(definition["properties"]["type"]["const"])


def asyncapi(examples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The AsyncAPI 3 document of the topic and its dead letters.

    Args:
        examples: events by the name of the example.
    """
    payloads = _definitions()
    messages = {name: _message(name, definition, examples) for name, definition in payloads.items()}
    return {
        "asyncapi": "3.0.0",
        "id": "urn:stepstream:asyncapi:1",
        "info": {
            "title": "Stepstream",
            "version": "1.0.0",
            "description": "What people do in walkthroughs: starts, and steps that are shown, skipped and "
            "completed. A record is partitioned by murmur2 of its key, as Kafka's Java client does by "
            "default; librdkafka needs `partitioner=murmur2_random`.",
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": {
            "progress": {
                "address": TOPIC,
                "title": "What people do in walkthroughs, in order per user",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": _topic(TOPIC),
            },
            "deadLetters": {
                "address": TOPIC + DEAD_LETTER_SUFFIX,
                "title": "Records that are no event that counts",
                "messages": {"DeadLetter": {"$ref": "#/components/messages/DeadLetter"}},
                "bindings": _topic(TOPIC + DEAD_LETTER_SUFFIX),
            },
        },
        "operations": {
            "publishProgress": {
                "action": "send",
                "channel": {"$ref": "#/channels/progress"},
                "summary": "Producers publish here: idempotent, acks=all, keyed by user.",
            },
            "recordCompletions": {
                "action": "receive",
                "channel": {"$ref": "#/channels/progress"},
                "summary": "Group completion-recorder: judges every event and upserts its row.",
                "bindings": _group("completion-recorder"),
            },
            "aggregateSankey": {
                "action": "receive",
                "channel": {"$ref": "#/channels/progress"},
                "summary": "Group sankey-aggregator: counts the journeys that events name.",
                "bindings": _group("sankey-aggregator"),
            },
            "sendDeadLetters": {
                "action": "send",
                "channel": {"$ref": "#/channels/deadLetters"},
                "summary": "The completion-recorder sends refused records here, byte for byte if they fit.",
            },
        },
        "components": {
            "messages": {**messages, "DeadLetter": _dead_letter()},
            "schemas": {**payloads, "Headers": _headers()},
            "securitySchemes": {
                "scram": {"type": "scramSha512", "description": "A user of Kafka; an operator makes it."}
            },
        },
    }


def _servers() -> dict[str, Any]:
    return {
        "local": {
            "host": "127.0.0.1:9092",
            "protocol": "kafka",
            "description": "The containers of docker-compose.yml; `stepstream stack env` prints the address "
            "of the embedded stack.",
        },
        "deployed": {
            "host": "{bootstrap}",
            "protocol": "kafka-secure",
            "description": "A deployment, with TLS: whoever operates it gives you address and user.",
            "variables": {
                "bootstrap": {
                    "default": "kafka.example.org:9093",
                    "description": "Host and port of a broker.",
                }
            },
            "security": [{"$ref": "#/components/securitySchemes/scram"}],
        },
    }


def _topic(name: str) -> dict[str, Any]:
    return {"kafka": {"topic": name, "partitions": TOPIC_PARTITIONS, "bindingVersion": "0.5.0"}}


def _group(name: str) -> dict[str, Any]:
    group = {"type": "string", "const": name}
    return {"kafka": {"groupId": group, "bindingVersion": "0.5.0"}}


def _message(
    name: str, definition: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    kind = _type(definition)
    return {
        "name": kind,
        "title": definition["description"].partition("\n")[0],
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/Headers"},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": "mcp_server_user_id in UTF-8"},
                "bindingVersion": "0.5.0",
            }
        },
        "examples": [
            {"name": example, "headers": {"ce_source": _source_of(kind)}, "payload": event}
            for example, event in examples.items()
            if event["type"] == kind
        ],
    }


def _source_of(kind: str) -> str:
    return OPERATOR_SOURCES[0] if kind in {"user-erased", "step-corrected"} else "/checkout"


def _headers() -> dict[str, Any]:
    """What a producer may say beside the event, in CloudEvents' binary mode; values are bytes of UTF-8."""
    told = {
        "ce_source": "A short name of the producer: what is refused is shown under it. Events that decide "
        "about a person are taken from trusted sources alone.",
        "ce_id": "The event_id.",
        "ce_type": "The type.",
        "ce_time": "When it happened, as RFC 3339 has it.",
        "ce_specversion": "1.0",
        "traceparent": "The trace that the event belongs to, as W3C Trace Context has it.",
    }
    return {
        "type": "object",
        "description": "None is required, but send `ce_source`. Consumers rely on the value alone, but for "
        "who may decide about a person.",
        "properties": {name: {"type": "string", "description": text} for name, text in told.items()},
    }


#: Only a letter that was cut has these.
_CUT: Final = {
    "stepstream-cut": "What does not fit and was cut, of `headers key value`. Only then are these here.",
    "stepstream-cut-value-bytes": "How many bytes the value had; -1 is none.",
    "stepstream-cut-key-bytes": "How many bytes the key had; -1 is none.",
    "stepstream-cut-headers": "How many headers there were.",
    "stepstream-cut-value-sha256": "The SHA-256 of the value as it was.",
    "stepstream-cut-crc32": "The CRC-32 of key and value as they were.",
}


def _dead_letter() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "name": "dead-letter",
        "title": "A refused record: its key, value and headers as they were, and these headers after them",
        "headers": {
            "type": "object",
            "properties": {
                "stepstream-topic": text,
                "stepstream-partition": text,
                "stepstream-offset": text,
                "stepstream-timestamp": text,
                "stepstream-error-class": {"type": "string", "enum": [r.value for r in Rejection]},
                "stepstream-error": text,
                **{name: {"type": "string", "description": told} for name, told in _CUT.items()},
            },
        },
        "payload": {"description": "Any bytes, or none."},
    }


def partition_vectors() -> dict[str, Any]:
    """For each key its partition by topic size."""
    partition = DefaultPartitioner()
    return {
        "description": "Partition of each UTF-8 key for topics of so many partitions: Kafka's default "
        "partitioner, (murmur2(key) & 0x7fffffff) % partitions.",
        "vectors": [
            {
                "key": key,
                "key_utf8_hex": key.encode().hex(),
                "partitions": {
                    str(size): partition(key.encode(), list(range(size)), list(range(size)))
                    for size in VECTOR_PARTITIONS
                },
            }
            for key in VECTOR_KEYS
        ],
    }
