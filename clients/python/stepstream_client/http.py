"""Sending by HTTP: whole batches, a verdict for each event, and again where that is safe."""

import asyncio
import gzip
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay
from tenacity.wait import wait_random_exponential

from stepstream_client.buffering import Accepted, Buffered, OnFailure, Verdict, settle, unforeseen
from stepstream_client.contract import Rejection, encode
from stepstream_client.errors import InvalidEvent, NotAcknowledged, NotAllowed, NotInTime, Refused
from stepstream_client.events import Prepared

#: What one request may hold, in bytes, and one event of it.
MAX_BATCH_BYTES: Final = 500_000
MAX_EVENT_BYTES: Final = 32_000
MAX_REGISTERED: Final = 1_000
_MAKES_A_KEY: Final = "`stepstream keys create --organization ORG --may-write` makes one"
#: Smaller bodies are sent as they are.
_GZIP_FROM: Final = 1_000
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})
#: What asking again does not mend, though it is no answer.
_OF_THE_REQUEST: Final = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.TooManyRedirects)
_BACK_OFF: Final = wait_random_exponential(0.2, max=10)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody as the platform knows them; `created` says whether that is new."""

    distinct_id: str
    mcp_server_user_id: str
    created: bool


@dataclass(frozen=True, slots=True)
class Session:
    """A session to register: of a server, and of a person where it is known whose it is."""

    session_id: str
    server: str | None = None
    distinct_id: str | None = None
    mcp_server_user_id: str | None = None
    title: str | None = None
    started_at: int | datetime | None = None

    def as_dict(self) -> dict[str, object]:
        """Its fields as the API takes them, without those that are not given."""
        at = self.started_at
        given = {
            "session_id": self.session_id,
            "server": self.server,
            "distinct_id": self.distinct_id,
            "mcp_server_user_id": self.mcp_server_user_id,
            "title": self.title,
            "started_at": round(at.timestamp() * 1000) if isinstance(at, datetime) else at,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RegisteredSession:
    """A session as the platform knows it; `created` says whether that is new."""

    session_id: str
    mcp_server_session_id: str
    created: bool


#: What a key begins with: what begins so is not shown.
_KEY_PREFIX: Final = "sst_"


def check_address(url: object, key: object, url_name: str = "url", key_name: str = "key") -> None:
    """Looks at where events go by HTTP, and with which key; what it says never has the key.

    Raises:
        ValueError: it is no address, or no key.
    """
    try:
        is_address = (
            isinstance(url, str) and (found := httpx2.URL(url)).scheme in {"http", "https"} and found.host
        )
    except httpx2.InvalidURL:
        is_address = False
    if not is_address:
        given = "an API key" if isinstance(url, str) and url.startswith(_KEY_PREFIX) else repr(url)
        raise ValueError(f"{url_name}: {given} is no address; give that of analytics-api, https://...")
    if not isinstance(key, str) or not key:
        is_what = "empty" if key == "" else "None" if key is None else "no text"
        raise ValueError(f"{key_name}: it is {is_what}; {_MAKES_A_KEY}")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(
            f"{key_name}: it has a space, a line's end or a character that no key has; {_MAKES_A_KEY}"
        )


_T = TypeVar("_T")


def _several(given: _T | Iterable[_T], kind: type[_T], told: str) -> list[_T]:
    """One or several of a type as a list."""
    if isinstance(given, kind):
        return [given]
    if isinstance(given, Mapping | bytes | str) or not isinstance(given, Iterable):
        raise TypeError(f"this is {type(given).__name__}: {told}")
    found = list(given)
    if wrong := next((one for one in found if not isinstance(one, kind)), None):
        raise TypeError(f"one of them is {type(wrong).__name__}: {told}")
    return found


class _TryAgain(Exception):  # noqa: N818 - no error: a reason to wait
    """Nothing was taken; `after` is when the API wants to be asked again, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Api:
    """Posts to the API with a key, again where nothing was taken or nobody knows."""

    def __init__(self, url: str, key: str, timeout: float) -> None:
        check_address(url, key)
        self._timeout = timeout
        self._is_it = f"is {url} the address of analytics-api?"
        self._http = httpx2.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=min(timeout, 30.0),
        )

    async def post(self, path: str, body: bytes) -> Mapping[str, Any]:
        """The answer with a verdict for each item.

        Raises:
            NotAllowed: the key is unknown, or may not write.
            NotAcknowledged: no verdicts within the time.
        """
        headers = {}
        if len(body) >= _GZIP_FROM:
            body, headers = gzip.compress(body, 5, mtime=0), {"Content-Encoding": "gzip"}
        tries = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_before_delay(self._timeout),
            wait=_pause,
            reraise=True,
        )
        try:
            async for attempt in tries:
                with attempt:
                    return await self._once(path, body, headers)
        except _TryAgain as problem:
            raise NotInTime(f"by HTTP nobody took it: {problem}") from None
        except _OF_THE_REQUEST as problem:  # what it says may have the headers, and so the key
            raise NotAcknowledged(f"it cannot be sent: {type(problem).__name__}; {self._is_it}") from None
        raise AssertionError("tenacity returns or raises")

    async def _once(self, path: str, body: bytes, headers: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            answer = await self._http.post(path, content=body, headers=headers)
        except _OF_THE_REQUEST:
            raise
        except httpx2.ConnectError as problem:
            raise _TryAgain(f"{problem or type(problem).__name__}; {self._is_it}") from None
        except (httpx2.RequestError, OSError) as problem:
            raise _TryAgain(f"{type(problem).__name__} {problem}".strip()) from None
        if answer.status_code in _AGAIN:
            raise _TryAgain(_problem(answer), _retry_after(answer))
        if answer.status_code in {401, 403}:
            raise NotAllowed(_problem(answer))
        if answer.status_code in {404, 405}:
            raise NotAcknowledged(f"{_problem(answer)}; {self._is_it}")
        if answer.status_code not in {200, 207, 422}:
            raise NotAcknowledged(_problem(answer))
        try:
            found = answer.json()
            results = found["results"]
        except (ValueError, KeyError, TypeError):
            raise NotAcknowledged(f"HTTP {answer.status_code} without verdicts; {self._is_it}") from None
        if not isinstance(results, list):
            raise NotAcknowledged(f"HTTP {answer.status_code} without verdicts; {self._is_it}")
        return dict(found)

    async def close(self) -> None:
        """Ends its connections."""
        await self._http.aclose()


class AsyncHttpProducer(Buffered):
    """Sends events to `POST /v1/events`, where Kafka is out of reach, and registers people and sessions.

        async with AsyncHttpProducer("https://stepstream.example", key) as producer:
            await producer.send(StepCompleted(distinct_id="u-1", session_id="s-1", ...))

    What is given at once goes in one request. An event is accepted when Kafka has acknowledged it, or
    Stepstream's database holds it; it is tried again for `timeout` seconds while the API is away or busy.

    Args:
        url: where Stepstream's API is.
        key: a key that may write (`stepstream keys create --may-write`).
        timeout: how long an event may take with all that is tried, in seconds.
        max_buffered: so many events are on their way at most; `send` then waits.
        connections: so many requests are on their way at most.
        linger: how long the first event of a request waits for more, in seconds.
        on_failure: is told of events of `enqueue` that were not accepted; else they are logged.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 60.0,
        max_buffered: int = 10_000,
        connections: int = 4,
        linger: float = 0.005,
        on_failure: OnFailure | None = None,
    ) -> None:
        super().__init__(max_buffered, on_failure)
        self._api = Api(url, key, timeout)
        self._linger = linger
        self._connections = asyncio.Semaphore(connections)
        self._waiting: deque[tuple[Prepared, asyncio.Future[Accepted]]] = deque()
        self._posts: set[asyncio.Task[None]] = set()
        self._dispatching: asyncio.Task[None] | None = None

    async def register_people(self, distinct_ids: str | Iterable[str]) -> list[Person | Refused]:
        """Makes one or several known by your own ids; what became of each, in order. Again changes nothing.

        One that is refused is answered as `Refused`, and the others are made.

        Raises:
            TypeError: it is no text, or no texts.
            NotAcknowledged: the API is away or busy; `NotAllowed`, the key may not.
        """
        given = _several(distinct_ids, str, 'give ids, as in register_people(["customer 18"])')
        items = [{"distinct_id": one} for one in given]
        found = [r async for r in self._register("/v1/people", "people", items)]
        return [
            _refused(r)
            if r.get("status") != "accepted"
            else Person(r["distinct_id"], r["mcp_server_user_id"], r["created"])
            for r in found
        ]

    async def register_sessions(
        self, sessions: Session | Iterable[Session]
    ) -> list[RegisteredSession | Refused]:
        """Makes one or several known by your own ids; what became of each, in order. Again changes nothing.

        One that is refused is answered as `Refused`, and the others are made.

        Raises:
            TypeError: it is no `Session`, or no sessions.
            NotAcknowledged: the API is away or busy; `NotAllowed`, the key may not.
        """
        given = _several(sessions, Session, 'give sessions, as in register_sessions([Session("s-1")])')
        items = [session.as_dict() for session in given]
        found = [r async for r in self._register("/v1/sessions", "sessions", items)]
        return [
            _refused(r)
            if r.get("status") != "accepted"
            else RegisteredSession(r["session_id"], r["mcp_server_session_id"], r["created"])
            for r in found
        ]

    async def _register(self, path: str, name: str, items: Sequence[Mapping[str, object]]) -> Any:
        for portion in _portions(items):
            body = b'{"' + name.encode() + b'":[' + b",".join(portion) + b"]}"
            answer = await self._api.post(path, body)
            for result in sorted(answer["results"], key=lambda r: r["index"]):
                yield result

    def _check(self, event: Prepared) -> None:
        if len(event.value) > MAX_EVENT_BYTES:
            raise InvalidEvent(
                "too-large", f"event: it has {len(event.value)} bytes; by HTTP {MAX_EVENT_BYTES} are the most"
            )

    async def _hand_over(self, event: Prepared, out: asyncio.Future[Accepted]) -> None:
        self._waiting.append((event, out))
        if self._dispatching is None or self._dispatching.done():
            self._dispatching = asyncio.create_task(self._dispatch())

    async def _dispatch(self) -> None:
        """Posts what waits, as many requests at once as there are connections."""
        await asyncio.sleep(self._linger)
        while self._waiting:
            await self._connections.acquire()
            post = asyncio.create_task(self._post(self._take()))
            self._posts.add(post)
            post.add_done_callback(self._posted)

    def _posted(self, post: asyncio.Task[None]) -> None:
        self._posts.discard(post)
        self._connections.release()

    def _take(self) -> list[tuple[Prepared, asyncio.Future[Accepted]]]:
        """The next events that fit into a request."""
        batch, size = [], 2
        while self._waiting and size + len(self._waiting[0][0].value) + 1 <= MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0].value) + 1
        return batch

    async def _post(self, batch: Sequence[tuple[Prepared, asyncio.Future[Accepted]]]) -> None:
        try:
            answer = await self._api.post("/v1/events", b"[" + b",".join(e.value for e, _ in batch) + b"]")
            results = {r.get("index"): r for r in answer["results"] if isinstance(r, dict)}
            through = str(answer.get("through", "kafka"))
            for index, (event, out) in enumerate(batch):
                settle(out, _verdict(event, results.get(index), through))
        except NotAcknowledged as problem:
            for event, out in batch:
                settle(out, type(problem)(problem.reason, event.event_id))
        except Exception as problem:  # noqa: BLE001 - whatever it is, nobody is to wait for ever
            for event, out in batch:
                settle(out, unforeseen(problem, event.event_id))

    async def _end(self) -> None:
        self._waiting.clear()
        ending = [*self._posts]
        if self._dispatching is not None:  # before the posts, as it would go on once they have ended
            ending.insert(0, self._dispatching)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._api.close()


def _portions(items: Sequence[Mapping[str, object]]) -> Iterator[list[bytes]]:
    """The items as JSON, by as many as a request may hold."""
    portion: list[bytes] = []
    size = 0
    for item in items:
        encoded = encode(item)
        if portion and (len(portion) >= MAX_REGISTERED or size + len(encoded) + 20 > MAX_BATCH_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(encoded)
        size += len(encoded) + 1
    if portion:
        yield portion


def _verdict(event: Prepared, result: Mapping[str, Any] | None, through: str) -> Verdict:
    if result is None:
        return NotAcknowledged("the API's answer has no verdict for it", event.event_id)
    if result.get("status") == "accepted":
        return Accepted(event.event_id, through)
    refused = _refused(result)
    return InvalidEvent(refused.rejection, refused.message, field=refused.field)


def _refused(result: Mapping[str, Any]) -> Refused:
    error = result.get("error") or {}
    return Refused(
        str(error.get("class", Rejection.INVALID)), str(error.get("message", "")), field=error.get("field")
    )


def _problem(answer: httpx2.Response) -> str:
    """What the API says of a request that it did not take (RFC 9457), in a line."""
    try:
        found = answer.json()
        told = found.get("detail") or found.get("title") or ""
    except (ValueError, AttributeError):
        told = ""
    return f"HTTP {answer.status_code} {told or answer.reason_phrase}".strip()


def _retry_after(answer: httpx2.Response) -> float | None:
    """Seconds from now, from either form of the header; None where there is none."""
    given = answer.headers.get("Retry-After")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _pause(state: RetryCallState) -> float:
    problem = state.outcome.exception() if state.outcome is not None else None
    after = problem.after if isinstance(problem, _TryAgain) else None
    return _BACK_OFF(state) if after is None else after + _BACK_OFF(state) / 10
