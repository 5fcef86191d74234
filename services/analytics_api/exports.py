"""Whole lists of people as files of any length: read page by page, while the client takes them.

Each page is read in a turn of its own, so that others wait for a page of an export and not for all of it.
While the client reads, the export has neither a place nor a connection, but the text of one page. Pages go on
by the id of their last person, which does not change: whoever has a journey from the beginning of an export
to its end is in it exactly once, as they were when their page was read, whatever they do meanwhile.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import date
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.analytics_api.answers import Answers
from services.analytics_api.freshness import SERVICE
from services.analytics_api.models import Journey, JourneysQuestion
from services.analytics_api.problems import in_short
from services.analytics_api.store import Context
from services.analytics_api.tables import MEDIA_TYPE, csv_part, json_lines
from services.runtime.database_errors import is_away
from services.runtime.faults import Exchange
from services.runtime.http import BrokenOffError

log = logging.getLogger("stepstream.analytics")

#: Between two looks at whether the key is still good.
_KEY_SECONDS: Final = 15.0


class Export:
    """The journeys behind a figure, in parts of text.

    Args:
        answers: answers questions.
        context: the walkthrough that is asked about.
        question: which journeys.
        media_type: CSV, or a line of JSON for each.
        is_admitted: whether whoever asked may still ask.
        stopping: the service ends.
    """

    def __init__(
        self,
        answers: Answers,
        context: Context,
        question: JourneysQuestion,
        media_type: str,
        is_admitted: Callable[[], Awaitable[bool]],
        stopping: asyncio.Event,
    ) -> None:
        self._answers = answers
        self._context = context
        self._question = question
        self._is_csv = media_type == MEDIA_TYPE
        self._is_admitted = is_admitted
        self._stopping = stopping
        self._today: date = answers.today
        self._key_at = time.monotonic()

    async def first(self) -> tuple[str, str | None]:
        """The first part, in the turn of the question; and after whom the next one begins, if there is one.

        Raises:
            ProblemError: the question makes no sense, or too many are asked.
        """
        return await self._read("", is_first=True)

    async def parts(self, first: str, after: str | None) -> AsyncGenerator[str, None]:
        """All of it, from the first part on.

        Raises:
            BrokenOffError: it cannot go on.
        """
        yield first
        while after is not None:
            text, after = await self._following(after)
            if text:
                yield text

    async def _following(self, after: str) -> tuple[str, str | None]:
        try:
            if self._stopping.is_set():
                raise self._broken_off("the service ends")
            async with self._context.turn.again():
                if not await self._may_go_on():
                    raise self._broken_off("the key is no longer good")
                return await self._read(after)
        except Exception as error:
            if not is_away(error):
                raise
            raise self._broken_off(in_short(error)) from error

    async def _may_go_on(self) -> bool:
        if time.monotonic() - self._key_at < _KEY_SECONDS:
            return True
        self._key_at = time.monotonic()
        return await self._is_admitted()

    def _broken_off(self, why: str) -> BrokenOffError:
        return BrokenOffError(f"an export of {self._context.id} broke off: {why}")

    async def _read(self, after: str, *, is_first: bool = False) -> tuple[str, str | None]:
        def write(journeys: Sequence[Journey]) -> str:
            return csv_part(journeys, Journey, is_first=is_first) if self._is_csv else json_lines(journeys)

        return await self._answers.export(self._context, self._question, self._today, after, write)


class ExportResponse(StreamingResponse):
    """An export as it is sent: it has its share from before its first byte to its end."""

    def __init__(
        self, share: contextlib.AbstractContextManager[None], parts: AsyncGenerator[str, None], **more: Any
    ) -> None:
        super().__init__(parts, **more)
        self._share = share
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it.

        Raises:
            ProblemError: the organization, or its key, has its share of exports already.
            BrokenOffError: it cannot go on.
        """
        with self._share:
            try:
                await super().__call__(scope, receive, send)
            except BrokenOffError as error:
                fields = {"request_id": Exchange.of(SERVICE, scope).id}
                log.warning("%s", error, extra={"fields": fields})
                raise
            finally:
                await self._parts.aclose()
