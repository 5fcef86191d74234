"""How long a statement waits for a row that somebody else has locked, before its events are set aside."""

from typing import Final

from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)

#: The next look comes within a second or so.
PATIENCE: Final = "50ms"
#: Where much is locked.
IMPATIENCE: Final = "2ms"


async def wait_at_most(connection: Connection, patience: str) -> None:
    """Bounds how long statements wait for a lock, until the transaction ends.

    Args:
        connection: in a transaction.
        patience: in the words of `lock_timeout`.
    """
    await connection.execute(SQL["wait_at_most"], patience)
