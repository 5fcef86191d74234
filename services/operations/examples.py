"""The rows that the contract's examples name, so that they can be sent as they are."""

from pathlib import Path
from typing import Final

import schemas
from services.runtime.database import Connection

ORGANIZATION: Final = "org_examples"
_ROWS: Final = Path(schemas.__file__).parent / "examples" / "rows.sql"


async def write_rows(connection: Connection) -> None:
    """Writes them in one transaction; those that are there stay as they are."""
    await connection.execute(_ROWS.read_text("utf-8"))
