"""Spans of OpenTelemetry: one trace from an agent's call through outbox and Kafka to both consumers.

A message carries its trace in the W3C header `traceparent`. Only messages whose trace is sampled get
spans, so that a backlog of events that nobody traces costs one look at their headers.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PROPAGATOR = TraceContextTextMapPropagator()
HEADER = "traceparent"
#: The most messages of a batch that get spans of their own.
MAX_SPANS = 100

#: Services where traces begin.
_BEGIN_TRACES = frozenset({"walkthrough-mcp"})

_recording = False


def configure_tracing(service: str, endpoint: str, ratio: float) -> None:
    """Traces a share of the agents' calls; spans go to the OTLP endpoint, where there is one.

    Without one only the service that begins traces makes any, which its events carry on for others.
    """
    if not endpoint and service not in _BEGIN_TRACES:
        return
    global _recording  # noqa: PLW0603 - OpenTelemetry's provider is one for the process as well
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create({"service.name": service, "service.namespace": "stepstream"}),
    )
    if endpoint:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(exporter_to(endpoint)))
        _recording = True
    trace.set_tracer_provider(provider)


def exporter_to(endpoint: str) -> "SpanExporter":
    """What sends spans there, with the headers of OTEL_EXPORTER_OTLP_HEADERS."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # OpenTelemetry logs a header that it cannot read, and that may be a token.
    logging.getLogger("opentelemetry.util.re").addFilter(_without_header)
    return OTLPSpanExporter(endpoint=endpoint)


def _without_header(record: logging.LogRecord) -> bool:
    """Takes the header out of a line of the log."""
    record.msg = (
        "a part of OTEL_EXPORTER_OTLP_HEADERS is not name=value, with the value URL-encoded: left out"
    )
    record.args = ()
    return True


def record_spans() -> None:
    """Makes spans although no endpoint is set: somebody else has set a provider."""
    global _recording  # noqa: PLW0603 - as above
    _recording = True


def parents_of(headers_of_each: Iterable[Iterable[tuple[str, bytes | str]]]) -> list[Context]:
    """The sampled traces that messages carry, at most `MAX_SPANS`; a header that is none is passed over."""
    parents: list[Context] = []
    if not _recording:
        return parents
    for headers in headers_of_each:
        for name, value in headers:
            if name == HEADER:
                text = value if isinstance(value, str) else value.decode("latin-1")
                context = PROPAGATOR.extract({HEADER: text})
                if trace.get_current_span(context).get_span_context().trace_flags.sampled:
                    parents.append(context)
                break
        if len(parents) == MAX_SPANS:
            break
    return parents


@contextlib.contextmanager
def message_spans(
    service: str, name: str, kind: SpanKind, parents: list[Context], count: int
) -> Iterator[None]:
    """While the block runs: a span for the batch, linked with a span in the trace of each message.

    The names follow the semantic conventions for messaging.
    """
    if not parents:
        yield
        return
    tracer = trace.get_tracer(f"stepstream.{service}")
    attributes = {"messaging.system": "kafka", "messaging.consumer.group.name": service}
    spans = [tracer.start_span(name, context=p, kind=kind, attributes=attributes) for p in parents]
    try:
        with tracer.start_as_current_span(
            f"{name} batch",
            context=Context(),
            kind=kind,
            links=[Link(span.get_span_context()) for span in spans],
            attributes=attributes | {"messaging.batch.message_count": count},
        ):
            yield
    except BaseException as error:
        for span in spans:
            span.record_exception(error)
        raise
    finally:
        for span in spans:
            span.end()
