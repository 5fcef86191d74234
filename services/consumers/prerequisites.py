"""What a consumer cannot do without, looked for before it starts."""

from services.runtime.database import Pool
from services.runtime.errors import ConfigurationError
from services.runtime.kafka import admin_client, check_codecs, refuse_compacted
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings


async def check_prerequisites(settings: Settings, pool: Pool) -> None:
    """Looks for what a service cannot do without.

    Raises:
        ConfigurationError: a codec cannot be read, migrations are pending, or the topics do not exist or are
            compacted.
    """
    check_codecs()
    await check_migrated(pool)
    async with admin_client(settings) as admin:
        there = await admin.list_topics()
        absent = [t for t in (settings.topic, settings.dead_letter_topic) if t not in there]
        if not absent:
            await refuse_compacted(admin, [settings.topic, settings.dead_letter_topic])
    if absent:
        raise ConfigurationError(
            f"Kafka has no topic {' and no topic '.join(absent)}: run `stepstream migrate` first"
        )
