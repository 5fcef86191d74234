"""The recorder's connections: their settings, and the temporary tables where a load lands."""

from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)

#: Settings of the recorder's connections. It says who it is, so that its own changes leave no marks; it
#: gives up a lock before PostgreSQL looks for deadlocks, so that it is never somebody else who is
#: cancelled; and the rows of a load stay in memory.
SERVER_SETTINGS = {
    "application_name": "stepstream completion-recorder",
    "stepstream.recorder": "on",
    "lock_timeout": "500ms",
    "work_mem": "64MB",
}


async def prepare(connection: Connection) -> None:
    """Makes the temporary tables of a new connection."""
    await connection.execute(SQL["create_incoming"])
