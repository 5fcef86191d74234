"""The generated documents: JSON Schema, AsyncAPI, and key-to-partition vectors, as plain values."""

from collections.abc import Mapping
from typing import Any, Final

from aiokafka.partitioner import DefaultPartitioner
from pydantic.json_schema import GenerateJsonSchema

from schemas.events import DEAD_LETTER_SUFFIX, EVENT, TOPIC, Rejection

JSON_SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

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
    """The closed schema that producers are held to; consumers ignore fields they do not know."""
    schema = EVENT.json_schema(schema_generator=GenerateJsonSchema)
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
        # Absent is how an event says that it has none; null is only tolerated.
        for name in definition["properties"]:
            definition["properties"][name].pop("title", None)
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "title": f"Events of {TOPIC}",
        "description": "The value of a record: one UTF-8 JSON object.",
        **schema,
    }


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document of the topic and its dead letters."""
    schema = json_schema()
    payloads = {name: dict(definition) for name, definition in schema["$defs"].items()}
    messages = _messages(payloads)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stepstream",
            "version": "1.0.0",
            "description": "What people do in walkthroughs: starts, and steps that are shown, skipped and "
            "completed. A record is partitioned by murmur2 of its key, as Kafka's Java client does by "
            "default; librdkafka needs `partitioner=murmur2_random`.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "progress": {
                "address": TOPIC,
                "title": "What people do in walkthroughs, in order per user",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            },
            "deadLetters": {
                "address": TOPIC + DEAD_LETTER_SUFFIX,
                "title": "Records that are no event that counts",
                "messages": {"DeadLetter": {"$ref": "#/components/messages/DeadLetter"}},
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
            },
            "aggregateSankey": {
                "action": "receive",
                "channel": {"$ref": "#/channels/progress"},
                "summary": "Group sankey-aggregator: counts the journeys that events name.",
            },
            "sendDeadLetters": {
                "action": "send",
                "channel": {"$ref": "#/channels/deadLetters"},
                "summary": "The completion-recorder sends refused records here, byte for byte.",
            },
        },
        "components": {
            "messages": {**messages, "DeadLetter": _dead_letter()},
            "schemas": payloads,
        },
    }


def _messages(payloads: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {
            "name": definition["properties"]["type"]["const"],
            "title": definition["description"].partition("\n")[0],
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{name}"},
            "bindings": {
                "kafka": {
                    "key": {"type": "string", "description": "mcp_server_user_id in UTF-8"},
                    "bindingVersion": "0.5.0",
                }
            },
        }
        for name, definition in payloads.items()
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
