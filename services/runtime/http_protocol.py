"""A connection of an HTTP port: how long its client may take for what is missing, and to read its answer."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.runtime.bounds import client_of
from services.runtime.connections import Connections, Part
from services.runtime.faults import ARRIVED
from services.runtime.http import IS_LEFT

#: The largest head of a request, and what may follow a body that is no body; parsers take any.
_HEAD_BYTES: Final = 65_536
#: What HTTP allows around the value of a header: spaces and tabs.
_BLANKS: Final = b" \t"
#: So many requests of a connection may wait for the answer to the one before.
_AHEAD: Final = 10
#: What a client has to take of its answer, in bytes a second, while it is looked at.
_LEAST_RATE: Final = 512
#: So much of a body that nobody reads is passed over, and the connection goes on.
_PASSED_OVER: Final = 65_536
#: Of a longer one so much is taken, and for so long, while its client reads the answer: where a connection is
#: closed before all was sent, some systems throw away what came.
_DISCARDED: Final = 262_144
_LINGER_SECONDS: Final = 1.0

#: The part, of which request, and whether uvicorn has no timer for it.
_State: TypeAlias = tuple[Part, int, bool]


class _TooManyError(Exception):
    """A client sends more requests than may wait."""


class _HostError(Exception):
    """A request does not say once, and once alone, which host it is for."""


class TimedProtocol(HttpToolsProtocol):
    """A connection whose client may take so long, and no longer.

    The timers cost a request that comes in one piece nothing: they begin where something is missing after
    what has come was read.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.address = ""
        self.is_counted = False
        self.is_of_proxy = False
        #: When its client sent something, by the loop's clock.
        self.heard_at = self.loop.time()
        self._connections = connections
        self._part: Part | None = "head"
        self._requests = 0
        self._head_bytes = 0
        self._timed: _State | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._write_timer: asyncio.TimerHandle | None = None
        #: What is being answered; `cycle` is the last request that came, which may have to wait for it.
        self._answering: RequestResponseCycle | None = None
        #: What is missing of a body by its head; None is chunked, which may be any.
        self._left: int | None = 0
        #: What is still taken of a body that was answered before its end; None is a connection that goes on.
        self._discarding: int | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Lets it in, if there is room."""
        super().connection_made(transport)
        self.address = client_of(self.client[0]) if self.client else ""
        self.is_counted = self._connections.enter(self)
        if self.is_counted:
            self._watch()
        else:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it, and tells whoever answers, which uvicorn does for the last request alone."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._cancel_timers()
        self._connections.leave(self)

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None

    def is_idle_for(self, seconds: float) -> bool:
        """Whether its client has sent nothing for so long."""
        return self.loop.time() - self.heard_at >= seconds

    def end(self) -> None:
        """Closes it at once, whatever its client has yet to read or send."""
        self.transport.abort()

    def _refuse(self, status: int) -> None:
        """Closes it, and says why, where an answer is not on its way."""
        is_answering = (
            self._answering is not None and self._answering.response_started and not self._is_answered
        )
        if not is_answering and not self.transport.get_write_buffer_size():
            self.transport.write(_REFUSALS[status])
            if not self.transport.get_write_buffer_size():
                self.transport.close()
                return
        self.transport.abort()

    # --- what comes in ---

    def data_received(self, data: bytes) -> None:
        """Reads what came, and watches for what is missing."""
        self.heard_at = self.loop.time()
        if self._discarding is not None and not self._discard(len(data)):
            return
        if self._part is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        is_missing = self._part is not None and not self.transport.is_closing()
        if is_missing and self._head_bytes > _HEAD_BYTES:
            self._connections.report("head-size", self.address)
            self._refuse(431)
        self._watch()

    def on_message_begin(self) -> None:
        """A head begins.

        Raises:
            _TooManyError: as many wait already as may. It ends the reading, in the midst of what came.
        """
        if len(self.pipeline) >= _AHEAD:
            raise _TooManyError
        super().on_message_begin()
        self._part = "head"
        self._requests += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, without the blanks around its value; those behind a body are for nobody.

        Blanks before and behind a value are no part of it (RFC 9110, section 5.5). The parser leaves those
        behind, with which no name of a tool and no session id is equal to what it is compared with.
        """
        if self._part == "head":
            super().on_header(name, value.strip(_BLANKS))

    def on_headers_complete(self) -> None:
        """A head has come; the request may have to wait for the answer to the one before.

        Raises:
            _HostError: it names several hosts, or none (RFC 9112, section 3.2): a proxy might go by another
                one than we do. It ends the reading.
        """
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _HostError
        self.scope[ARRIVED] = time.monotonic()  # type: ignore[typeddict-unknown-key]
        self._part = "body"
        self._head_bytes = 0
        self._left = self._length()
        self.scope[IS_LEFT] = self._is_left  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self._left is None or self._left > _PASSED_OVER:
            self.cycle.transport = _Lingering(  # type: ignore[assignment]
                self.transport, self._linger
            )
        if not self.pipeline:
            self._answering = self.cycle

    def on_body(self, body: bytes) -> None:
        """A part of a body, which is bounded by whoever reads it; what surrounds it is counted anew."""
        self._head_bytes = 0
        if self._left is not None:
            self._left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = None
        self._left = 0
        super().on_message_complete()
        if self._discarding is not None:
            self._close_read()

    def _length(self) -> int | None:
        """How long a body is, by its head; the parser has seen that this is a number, if there is one."""
        for name, value in self.headers:
            if name == b"transfer-encoding":
                return None
            if name == b"content-length":
                return int(value)
        return 0

    def _is_left(self) -> bool:
        """Whether much of the body of the last request has yet to come."""
        return self._left is None or self._left > _PASSED_OVER

    def _linger(self) -> None:
        """Closes the connection, once its client has had the time to read the answer."""
        if self._part != "body":
            self.transport.close()
            return
        self._discarding = _DISCARDED
        self._connections.waits(self)
        self._cancel_timers()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._close_read)

    def _discard(self, size: int) -> bool:
        """Takes a part of a body that nobody reads; whether it has to be looked at where that ends."""
        assert self._discarding is not None  # noqa: S101 - it was looked at
        self._discarding -= size
        if self._discarding <= 0:
            self.flow.pause_reading()
        return self._discarding > 0

    def on_response_complete(self) -> None:
        """An answer is made; the next request, if one waits, is answered."""
        if self._discarding is not None:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            return
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None:
            self._answering = following
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, or too much of it."""
        if len(self.pipeline) >= _AHEAD:
            self._connections.report("ahead", self.address)
            self.end()
        else:
            self._refuse(400)

    @property
    def _is_answered(self) -> bool:
        return self.cycle is not None and bool(self.cycle.response_complete) and not self.pipeline

    def _missing(self) -> _State | None:
        """What of the client is missing."""
        if self._part is None and not self._is_answered:
            return None
        part = self._part or "idle"
        return part, self._requests, part != "idle" or self.timeout_keep_alive_task is None

    def _watch(self) -> None:
        if self._discarding is not None:
            return
        if self.transport.is_closing():
            self._watch_writing()
            return
        missing = self._missing()
        if missing == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = missing
        # Anew each time, so that those that have waited longest come first.
        self._connections.serves(self)
        if missing is not None or self.flow.write_paused:
            self._connections.waits(self)
        if missing is not None and missing[2]:
            self._give_up_later(missing[0])

    def _give_up_later(self, part: Part) -> None:
        seconds = self._connections.limits.seconds[part]
        self._timer = self.loop.call_later(seconds, self._give_up, part)

    def _give_up(self, part: Part) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is we who do not read
            self._give_up_later(part)
        elif part == "idle" or not self._requests:
            self.timeout_keep_alive_handler()
        else:
            self._connections.report(part, self.address)
            self._refuse(408)

    def timeout_keep_alive_handler(self) -> None:
        """Closes it, for its client wants nothing more; it may read what is there."""
        super().timeout_keep_alive_handler()
        self._watch_writing()

    def _close_read(self) -> None:
        """Reads no more; what is left of the answer may be read, in the time that there is for that."""
        self.transport.close()
        self._watch_writing()

    # --- what goes out ---

    def pause_writing(self) -> None:
        """The client has yet to read much."""
        super().pause_writing()
        self._connections.waits(self)
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = sys.maxsize
        if self._timed is None:
            self._connections.serves(self)

    def _watch_writing(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._unread = self.transport.get_write_buffer_size()
            self._check_writing_later()

    def _check_writing_later(self) -> None:
        seconds = self._connections.limits.write_seconds
        self._write_timer = self.loop.call_later(seconds, self._check_writing)

    def _check_writing(self) -> None:
        """Closes it when its client has read too little of what waits since the look before."""
        self._write_timer = None
        unread = self.transport.get_write_buffer_size()
        if not unread:
            return
        least = int(_LEAST_RATE * self._connections.limits.write_seconds)
        if unread > max(0, self._unread - least):
            self._connections.report("write", self.address)
            self.transport.abort()
            return
        self._unread = unread
        self._check_writing_later()


class _Lingering:
    """What a request with a long body is answered through: it is closed by `close`, in place of at once."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.close = close
        self.write = transport.write
        self.is_closing = transport.is_closing


def _refusal(line: str) -> bytes:
    return (
        f"HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\nretry-after: 5\r\n"
        "x-content-type-options: nosniff\r\n\r\n"
    ).encode()


_REFUSALS: Final = {
    400: _refusal("400 Bad Request"),
    408: _refusal("408 Request Timeout"),
    431: _refusal("431 Request Header Fields Too Large"),
    503: _refusal("503 Service Unavailable"),
}
