"""Settings, all from the environment: `STEPSTREAM_` and the field's name in capitals."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas import DEAD_LETTER_SUFFIX, OPERATOR_SOURCES, TOPIC
from services.runtime.setting_values import (
    PREFIX,
    host_and_port,
    http_url,
    in_capitals,
    optional_postgres_url,
    origins,
    parts_at_commas,
    postgres_url,
    read_secret,
    readable_file,
    scopes,
    scopes_by_server,
    secret_file,
    shown_url,
    sources,
    split_at_commas,
)

#: Passwords that may change while a service runs, where a file has them.
ROTATING = ("database_password", "kafka_password")
#: The folder of secrets: itself no setting, since it says where settings are.
SECRETS_DIR = PREFIX + "SECRETS_DIR"
#: PostgreSQL and the system's timers take no more than some weeks.
_MOST_SECONDS = 604_800


class Settings(BaseSettings):
    """Everything that can be set; `.env.example` shows each with its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    kafka_bootstrap_servers: Annotated[
        list[str], NoDecode, BeforeValidator(split_at_commas), AfterValidator(host_and_port)
    ] = Field(min_length=1, description="Kafka brokers to start from, comma-separated host:port.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How Kafka is spoken to; SSL is TLS."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How the user signs in, with SASL_PLAINTEXT and SASL_SSL."
    )
    kafka_username: str = Field(default="", description="The user at Kafka.")
    kafka_password: SecretStr = Field(default=SecretStr(""), description="The user's password at Kafka.")
    kafka_password_file: Annotated[str, AfterValidator(secret_file)] = Field(
        default="",
        description="A file with that password instead; it is read anew for new connections.",
    )
    kafka_ca_file: Annotated[str, AfterValidator(readable_file)] = Field(
        default="", description="Who signed Kafka's certificate (PEM); empty is the system's list."
    )
    kafka_certificate_file: Annotated[str, AfterValidator(readable_file)] = Field(
        default="", description="Our own certificate (PEM), where Kafka asks for one."
    )
    kafka_key_file: Annotated[str, AfterValidator(readable_file)] = Field(
        default="", description="The private key of our certificate (PEM, without a passphrase)."
    )
    database_url: Annotated[SecretStr, AfterValidator(postgres_url)] = Field(
        description="PostgreSQL, as in postgresql://user:password@host:5432/name; TLS with "
        "?sslmode=verify-full&sslrootcert=FILE."
    )
    database_password: SecretStr = Field(
        default=SecretStr(""), description="The password at PostgreSQL, where it is not in the URL."
    )
    database_password_file: Annotated[str, AfterValidator(secret_file)] = Field(
        default="",
        description="A file with that password instead; it is read for each new connection, so that the "
        "password can change while services run.",
    )
    database_refused_seconds: float = Field(
        default=300,
        ge=0,
        description="A service to which PostgreSQL refuses the sign-in, a right or the schema for so long "
        "exits non-zero; 0 is never.",
    )
    database_timeout_seconds: float = Field(
        default=60,
        ge=1,
        description="How long a statement of a consumer may go without an answer before it is tried again.",
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
        default=20_000, ge=1, le=400_000, description="The most events that a consumer takes at once."
    )
    batch_max_records: int = Field(
        default=10_000,
        ge=1,
        le=200_000,
        description="The most events in one transaction of the recorder.",
    )
    recorder_connections: int = Field(
        default=2,
        ge=1,
        le=16,
        description="In so many transactions at once the recorder writes a batch that is too large for one; "
        "each partition is in one of them.",
    )
    database_pool_size: int = Field(
        default=4, ge=2, le=100, description="The most connections a service opens."
    )
    session_timeout_seconds: float = Field(
        default=10,
        ge=1,
        le=300,
        description="Silence after which Kafka gives a dead consumer's partitions to others; Kafka itself "
        "takes no less than its group.min.session.timeout.ms, 6 s.",
    )
    commit_timeout_seconds: float = Field(
        default=30, gt=0, description="How long a commit of offsets may take before it is tried again."
    )
    drain_timeout_seconds: float = Field(
        default=30, gt=0, description="How long SIGTERM waits for the batch in hand."
    )
    revoke_wait_seconds: float = Field(
        default=15,
        gt=0,
        le=20,
        description="How long a rebalance waits for the batch in hand before that is rolled back.",
    )
    metadata_max_age_seconds: float = Field(
        default=30, ge=1, description="How soon added partitions are seen, at the latest."
    )
    stuck_seconds: float = Field(
        default=120,
        ge=2,
        description="A service that makes no progress for so long, and waits for nothing that it knows of, "
        "exits non-zero.",
    )
    wrong_database_guard: bool = Field(
        default=True,
        description="The recorder stops where nearly no event can be recorded and the database holds nothing "
        "that was recorded of the topic: it is the wrong one. False sends such events to the dead letters.",
    )
    trusted_sources: str = Field(
        default="",
        description="Whose events may decide about a person (user-erased, step-corrected), beside our own "
        "commands: values of the header ce_source, comma-separated.",
    )
    registering_sources: Annotated[str, AfterValidator(sources)] = Field(
        default="",
        description="Whose events have people and sessions registered that they name and that are missing: "
        "values of the header ce_source, comma-separated. Nobody checks who sends under such a name.",
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
    public_url: Annotated[str, AfterValidator(shown_url)] = Field(
        default="http://127.0.0.1:8084",
        description="Where agents reach walkthrough-mcp; tokens are for this address and the server's path.",
    )
    oauth_issuer: str = Field(
        default="",
        description="Who issues tokens for servers that need sign-in and name no issuer themselves.",
    )
    oauth_scopes: Annotated[str, AfterValidator(scopes)] = Field(
        default="",
        description="Scopes that clients are told to ask the issuer for, separated by spaces.",
    )
    oauth_server_scopes: Annotated[str, AfterValidator(scopes_by_server)] = Field(
        default="",
        description="Those of single servers instead, as in slug=read write, comma-separated.",
    )
    mcp_allowed_hosts: str = Field(
        default="", description="More Host headers to take, comma-separated host:port; `:*` is any port."
    )
    mcp_allowed_origins: str = Field(
        default="", description="More Origin headers to take, comma-separated, as in https://example.com."
    )
    mcp_cors_origins: Annotated[str, AfterValidator(origins)] = Field(
        default="",
        description="Origins whose pages may call walkthrough-mcp and read the answers (CORS), "
        "comma-separated; they need not be in STEPSTREAM_MCP_ALLOWED_ORIGINS too.",
    )
    mcp_max_request_bytes: int = Field(
        default=65_536, ge=1_024, description="The largest request body that walkthrough-mcp takes."
    )
    mcp_content_bytes: int = Field(
        default=32_768,
        ge=1_024,
        description="The most of a step's content that an answer of walkthrough-mcp holds; more of it is "
        "read part by part.",
    )
    mcp_person_rate: str = Field(
        default="240/minute", description="How often one person may call walkthrough-mcp; empty is no limit."
    )
    mcp_address_rate: str = Field(
        default="30000/minute",
        description="How often one address may call walkthrough-mcp; empty is no limit.",
    )
    mcp_failure_rate: str = Field(
        default="600/minute",
        description="How often one address may ask for MCP servers that do not exist; empty is no limit.",
    )
    mcp_new_people_rate: str = Field(
        default="600/minute",
        description="How many new people without a sign-in an address may bring to one server; empty is no "
        "limit.",
    )
    mcp_new_people_address_rate: str = Field(
        default="3000/minute",
        description="How many it may bring to all servers together; empty is no limit.",
    )
    mcp_new_people_server_rate: str = Field(
        default="6000/minute",
        description="How many new people may come to one server, signed in or not; empty is no limit.",
    )
    mcp_organization_calls: int = Field(
        default=2_000,
        ge=1,
        description="The most calls of agents at one organization's servers that are at the database or wait "
        "for it, in a process; half of them for one server, of which one address has a quarter.",
    )
    mcp_sessions: int = Field(
        default=4_000,
        ge=1,
        description="The most sessions of MCP clients in a process; one takes 50 to 100 KB, and up to 250 KB "
        "where its client wants.",
    )
    mcp_server_sessions: int = Field(
        default=2_000, ge=1, description="The most sessions of MCP clients at one server."
    )
    mcp_address_sessions: int = Field(
        default=1_000, ge=1, description="The most sessions of MCP clients of one address."
    )
    mcp_database_pool_size: int = Field(
        default=10, ge=1, le=100, description="The most database connections that walkthrough-mcp opens."
    )
    mcp_together_ms: int = Field(
        default=500,
        ge=0,
        le=1_000,
        description="How long the answer to a call that names no step waits for others of the same person "
        "and moment, of which one completes a step.",
    )
    mcp_access_token: SecretStr = Field(
        default=SecretStr(""), description="Who signs in over stdio, at a server that needs it."
    )
    api_public_url: Annotated[str, AfterValidator(shown_url)] = Field(
        default="http://127.0.0.1:8085", description="Where people reach the dashboard and the API."
    )
    api_database_url: Annotated[SecretStr, AfterValidator(optional_postgres_url)] = Field(
        default=SecretStr(""),
        description="PostgreSQL for analytics-api: a role that may only read, or a replica; empty is "
        "STEPSTREAM_DATABASE_URL.",
    )
    api_database_pool_size: int = Field(
        default=10, ge=1, le=100, description="The most database connections that analytics-api opens."
    )
    api_write_database_pool_size: int = Field(
        default=4,
        ge=1,
        le=100,
        description="The most database connections, at STEPSTREAM_DATABASE_URL, on which analytics-api "
        "writes what comes in by HTTP; half of them for one organization. It opens none before something "
        "comes.",
    )
    api_statement_seconds: float = Field(
        default=30, ge=1, description="How long analytics-api lets a statement run before it gives up."
    )
    api_lock_seconds: float = Field(
        default=0.5,
        ge=0.01,
        description="How long a question waits for a table that somebody has locked whole.",
    )
    api_sample_people: int = Field(
        default=20_000,
        ge=100,
        description="Percentiles and sessions are of so many people; of more it reads every n-th.",
    )
    api_oauth_issuer: str = Field(
        default="",
        description="Who issues tokens with which agents of analysts sign in at /mcp/analytics; empty is API "
        "keys alone.",
    )
    api_oauth_organization_claim: str = Field(
        default="organization_id",
        min_length=1,
        description="The claim of such a token that holds the id of the organization.",
    )
    api_oauth_scopes: Annotated[str, AfterValidator(scopes)] = Field(
        default="", description="Scopes that those agents are told to ask for, separated by spaces."
    )
    api_answer_bytes: int = Field(
        default=8_000,
        ge=1_000,
        le=100_000,
        description="How large an answer at /mcp/analytics is, in bytes of text and values together, unless "
        "the agent asks for another size.",
    )
    api_key_rate: str = Field(
        default="6000/minute", description="How often an API key may ask; empty is no limit."
    )
    api_organization_rate: str = Field(
        default="12000/minute",
        description="How often an organization may ask, with all its API keys; empty is no limit.",
    )
    api_organization_writes: int = Field(
        default=100,
        ge=1,
        description="The most batches of an organization that come in by HTTP at once; half of them for one "
        "API key.",
    )
    api_acknowledge_seconds: float = Field(
        default=5,
        ge=0.1,
        le=60,
        description="How long Kafka may take to acknowledge what comes in by HTTP; then the outbox takes it.",
    )
    api_outbox_events: int = Field(
        default=1_000_000,
        ge=1,
        description="How many events may wait in the outbox before what comes in by HTTP is refused while "
        "Kafka is away.",
    )
    api_write_rate: str = Field(
        default="600000/minute",
        description="How many events, people and sessions may come in with one API key, and twice as many of "
        "an organization; 1 KB counts as one at least. Empty is no limit.",
    )
    api_failure_rate: str = Field(
        default="60/minute",
        description="How often an address may come with keys that are not good, or were not used lately; "
        "empty is no limit.",
    )
    api_large_reads: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many reads of many journeys analytics-api runs at once; each keeps a core of "
        "PostgreSQL busy.",
    )
    api_organization_large_reads: int = Field(
        default=40,
        ge=1,
        description="The most such reads of an organization that run or wait; half of them for one API key.",
    )
    api_organization_questions: int = Field(
        default=100,
        ge=1,
        description="The most questions of an organization that are answered or wait at once; half of them "
        "for one API key.",
    )
    api_organization_exports: int = Field(
        default=8,
        ge=1,
        description="The most exports (whole lists of people) of an organization that run at once; half of "
        "them for one API key.",
    )
    api_streams: int = Field(
        default=500, ge=1, le=100_000, description="The most live streams that analytics-api keeps open."
    )
    api_organization_streams: int = Field(
        default=100,
        ge=1,
        description="The most live streams of an organization; half of them for one API key.",
    )
    api_allowed_origins: str = Field(
        default="",
        description="Origins whose pages may ask the API (CORS), comma-separated; empty is its own "
        "dashboard alone.",
    )
    http_host: str = Field(default="127.0.0.1", description="Where the HTTP port of a service listens.")
    health_host: str = Field(
        default="127.0.0.1",
        description="Where the health port of walkthrough-mcp and analytics-api listens; never public.",
    )
    http_head_seconds: float = Field(
        default=10, gt=0, description="How long a client may take for the head of a request."
    )
    http_body_seconds: float = Field(
        default=30, gt=0, description="How long a client may take for the body of a request."
    )
    http_idle_seconds: float = Field(
        default=75,
        gt=0,
        description="How long a connection may have no request. Let it be longer than clients and proxies "
        "keep one, so that it is they who close it.",
    )
    http_write_seconds: float = Field(
        default=30,
        gt=0,
        description="How long a client may leave its answer unread; a stream too.",
    )
    http_connections: int = Field(
        default=4_000, ge=10, le=100_000, description="The most connections to the HTTP port of a service."
    )
    http_address_connections: int = Field(
        default=1_000,
        ge=1,
        description="The most connections of one address; of one behind a trusted proxy, the most requests "
        "under way.",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(in_capitals)] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    otlp_endpoint: Annotated[str, AfterValidator(lambda url: http_url(url) if url else url)] = Field(
        default="",
        description="Where spans go, as OTLP over HTTP: http://collector:4318/v1/traces; empty is nowhere.",
    )
    trace_ratio: float = Field(
        default=0.1, ge=0, le=1, description="The share of agents' calls that are traced, with their events."
    )
    crash_at: str = Field(
        default="",
        description="For tests: the crash point (services/runtime/crashpoints.py) at which the process kills "
        "itself, as in recorder.polled:3 for its third passing.",
    )

    @model_validator(mode="after")
    def _end_some_day(self) -> Self:
        for name in type(self).model_fields:
            if name.endswith("_seconds") and getattr(self, name) > _MOST_SECONDS:
                raise ValueError(f"{PREFIX}{name.upper()}: {_MOST_SECONDS:,} seconds, a week, is the most")
        return self

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for name in ROTATING:
            if getattr(self, name).get_secret_value() and getattr(self, f"{name}_file"):
                variable = PREFIX + name.upper()
                raise ValueError(f"{variable} and {variable}_FILE: only one of them")
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_username and (self.kafka_password.get_secret_value() or self.kafka_password_file)
        ):
            raise ValueError(
                f"{PREFIX}KAFKA_USERNAME and {PREFIX}KAFKA_PASSWORD: both are needed with "
                f"{self.kafka_security_protocol}"
            )
        if bool(self.kafka_certificate_file) != bool(self.kafka_key_file):
            raise ValueError(
                f"{PREFIX}KAFKA_CERTIFICATE_FILE and {PREFIX}KAFKA_KEY_FILE: either both or none"
            )
        return self

    @property
    def dsn(self) -> str:
        """The database's URL with what it keeps secret: for connecting alone, never for a message."""
        return self.database_url.get_secret_value()

    def read_database_password(self) -> str | None:
        """The password at PostgreSQL as it is now; None where the URL, or a passfile, has it.

        Raises:
            OSError: its file cannot be read.
        """
        return _read(self.database_password, self.database_password_file)

    def trusted(self) -> frozenset[str]:
        """The sources whose events may decide about a person."""
        return frozenset((*OPERATOR_SOURCES, *self.names(self.trusted_sources)))

    def registering(self) -> frozenset[str]:
        """The sources whose events have people and sessions registered on first sight."""
        return frozenset(self.names(self.registering_sources))

    def read_kafka_password(self) -> str | None:
        """The password at Kafka as it is now, if there is one.

        Raises:
            OSError: its file cannot be read.
        """
        return _read(self.kafka_password, self.kafka_password_file)

    @property
    def dead_letter_topic(self) -> str:
        """The topic of refused events."""
        return self.topic + DEAD_LETTER_SUFFIX

    @staticmethod
    def names(text: str) -> list[str]:
        """The parts of a comma-separated setting."""
        return parts_at_commas(text)

    def scopes_at(self, slug: str) -> list[str]:
        """The scopes that clients ask for at an MCP server where people sign in."""
        of_servers = {
            name.strip(): text
            for name, _, text in (part.partition("=") for part in self.names(self.oauth_server_scopes))
        }
        return of_servers.get(slug, self.oauth_scopes).split()

    def group(self, service: str) -> str:
        """The consumer group of a service."""
        return self.group_prefix + service


def _read(password: SecretStr, file: str) -> str | None:
    return (read_secret(file) if file else password.get_secret_value()) or None
