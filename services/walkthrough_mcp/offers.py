"""What a server offers, for those who only look: introduction and prompts. Nobody's progress is read."""

import logging
from collections.abc import Callable
from typing import Final

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR

from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import Pool
from services.runtime.database_errors import is_away
from services.walkthrough_mcp import store
from services.walkthrough_mcp.guide import Offer
from services.walkthrough_mcp.people import Caller
from services.walkthrough_mcp.snapshots import OfferCache
from services.walkthrough_mcp.turns import BusyError, CrowdedError, Places

log = logging.getLogger("stepstream.mcp")

AWAY: Final = "The walkthroughs cannot be reached right now. Try the same call again in a moment."
BUSY: Final = (
    "Other calls for this person, or other work on what they need, are still under way. Wait for them, or a "
    "moment, and try the same call again."
)


class Offers:
    """Reads what a server offers, and keeps it while it stays so.

    Args:
        pool: connections made with `store.SERVER_SETTINGS`.
        places: where calls of many servers take turns.
    """

    def __init__(self, pool: Callable[[], Pool], places: Places | None) -> None:
        self._pool = pool
        self.places = places
        self.cache = OfferCache()
        self._away = Seldom(log, "offers were not read, the database is away", OUTAGE_SECONDS)

    async def at(self, caller: Caller) -> tuple[Offer, ...]:
        """What the caller's server offers.

        Raises:
            MCPError: it cannot be read now; its reason is `busy` or `temporarily_unavailable`.
        """
        if not caller.server.tools_enabled:
            return ()
        try:
            return await store.offered(self._pool(), caller, self.places, self.cache)
        except CrowdedError as error:
            raise MCPError(INTERNAL_ERROR, str(error), {"reason": "busy"}) from None
        except BusyError:
            raise MCPError(INTERNAL_ERROR, BUSY, {"reason": "busy"}) from None
        except Exception as error:
            if not is_away(error):
                raise
            self._away.warn(type(error).__name__)
            raise MCPError(INTERNAL_ERROR, AWAY, {"reason": "temporarily_unavailable"}) from None
