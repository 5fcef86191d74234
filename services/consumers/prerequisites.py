"""What a consumer cannot do without, looked for before it starts."""

from services.runtime.database import Pool
from services.runtime.kafka import admin_client, check_codecs, describe_topics, refuse_compacted
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings


async def check_prerequisites(settings: Settings, pool: Pool) -> None:
    """Looks for what a service cannot do without.

    Raises:
        ConfigurationError: a codec cannot be read, migrations are pending, or the topics do not exist or are
            compacted.
        TopicAuthorizationFailedError: Kafka does not tell us of the topics.
    """
    check_codecs()
    await check_migrated(pool)
    async with admin_client(settings) as admin:
        topics = settings.topic, settings.dead_letter_topic
        await describe_topics(admin, *topics)
        await refuse_compacted(admin, topics)
