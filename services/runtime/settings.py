"""Settings, all from the environment: `STEPSTREAM_` and the field's name in capitals."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas import DEAD_LETTER_SUFFIX, TOPIC
from services.runtime.errors import ConfigurationError

PREFIX = "STEPSTREAM_"


def _addresses(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _host_and_port(addresses: list[str]) -> list[str]:
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"`{address}` is not host:port; several are separated by commas")
    return addresses


def _postgres_url(url: str) -> str:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("it starts with postgresql://, as in postgresql://user:password@host:5432/name")
    return url


def _http_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/?#]+[^?#]*", url):
        raise ValueError("it starts with http:// or https:// and has no query, as in https://mcp.example.com")
    return url


class Settings(BaseSettings):
    """Everything that can be set; `.env.example` shows each with its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    kafka_bootstrap_servers: Annotated[
        list[str], NoDecode, BeforeValidator(_addresses), AfterValidator(_host_and_port)
    ] = Field(min_length=1, description="Kafka brokers to start from, comma-separated host:port.")
    database_url: Annotated[str, AfterValidator(_postgres_url)] = Field(
        description="PostgreSQL, as in postgresql://user:password@host:5432/name."
    )
    topic: str = Field(default=TOPIC, description="The topic of events; dead letters go beside it.")
    topic_partitions: int = Field(default=6, ge=1, description="Partitions of topics that `migrate` creates.")
    topic_replication_factor: int = Field(
        default=-1,
        ge=-1,
        description="Replicas of topics that `migrate` creates; -1 is the broker's default.",
    )
    group_prefix: str = Field(default="", description="Put before the names of the consumer groups.")
    poll_max_records: int = Field(
        default=60_000, ge=1, le=400_000, description="The most events between two commits of offsets."
    )
    batch_max_records: int = Field(
        default=20_000, ge=1, le=200_000, description="The most events in one transaction of the recorder."
    )
    database_pool_size: int = Field(
        default=4, ge=2, le=100, description="The most connections a service opens."
    )
    session_timeout_seconds: float = Field(
        default=10,
        ge=6,
        le=300,
        description="Silence after which Kafka gives a dead consumer's partitions to others.",
    )
    commit_timeout_seconds: float = Field(
        default=30, gt=0, description="How long a commit of offsets may take before the service stops."
    )
    drain_timeout_seconds: float = Field(
        default=30, gt=0, description="How long SIGTERM waits for the batch in hand."
    )
    relay_batch_records: int = Field(
        default=2_000,
        ge=1,
        le=100_000,
        description="The most events the relay takes from the outbox at once.",
    )
    relay_poll_seconds: float = Field(
        default=1, gt=0, description="How often the relay looks for events of which no notice came."
    )
    relay_send_timeout_seconds: float = Field(
        default=30, ge=1, description="How long Kafka may take to acknowledge before the relay starts anew."
    )
    public_url: Annotated[str, AfterValidator(_http_url)] = Field(
        default="http://127.0.0.1:8084",
        description="Where agents reach walkthrough-mcp; tokens are for this address and the server's path.",
    )
    oauth_issuer: str = Field(
        default="",
        description="Who issues tokens for servers that need sign-in and name no issuer themselves.",
    )
    mcp_allowed_hosts: str = Field(
        default="", description="More Host headers to take, comma-separated host:port; `:*` is any port."
    )
    mcp_allowed_origins: str = Field(
        default="", description="More Origin headers to take, comma-separated, as in https://example.com."
    )
    mcp_max_request_bytes: int = Field(
        default=65_536, ge=1_024, description="The largest request body that walkthrough-mcp takes."
    )
    mcp_person_rate: str = Field(
        default="240/minute", description="How often one person may call walkthrough-mcp; empty is no limit."
    )
    mcp_address_rate: str = Field(
        default="30000/minute",
        description="How often one address may call walkthrough-mcp; empty is no limit.",
    )
    mcp_database_pool_size: int = Field(
        default=10, ge=1, le=100, description="The most database connections that walkthrough-mcp opens."
    )
    mcp_access_token: SecretStr = Field(
        default=SecretStr(""), description="Who signs in over stdio, at a server that needs it."
    )
    http_host: str = Field(default="127.0.0.1", description="Where health and metrics listen.")
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @property
    def dead_letter_topic(self) -> str:
        """The topic of refused events."""
        return self.topic + DEAD_LETTER_SUFFIX

    @staticmethod
    def names(text: str) -> list[str]:
        """The parts of a comma-separated setting."""
        return [part.strip() for part in text.split(",") if part.strip()]

    def group(self, service: str) -> str:
        """The consumer group of a service."""
        return self.group_prefix + service


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment.

    Raises:
        ConfigurationError: names each variable that is missing or wrong, and how it should look.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = PREFIX + str(problem["loc"][0]).upper()
            if problem["type"] == "missing":
                text = f"is not set. {Settings.model_fields[str(problem['loc'][0])].description}"
            else:
                text = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {text}")
        raise ConfigurationError("\n".join(lines)) from None
