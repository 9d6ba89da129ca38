"""What a server counts, for Prometheus.

| metric | kind | labels |
|---|---|---|
| `kft_requests_total` | counter | `protocol` (rest, grpc), `method`, `code` (200; OK) |
| `kft_request_seconds` | histogram | `protocol`, `method` |
| `kft_examples_total` | counter | `signature`: rows that were answered |
| `kft_batch_examples` | histogram | `signature`: rows that were computed together |
| `kft_batch_seconds` | histogram | `signature`: how long the model took |
| `kft_batches_failed_total` | counter | `signature`: each is tried again request by request |
| `kft_queue_requests` | gauge | requests that wait for the model |
| `kft_open_requests` | gauge | requests that are read, wait or are computed |
| `kft_served_version` | gauge | the newest version that answers; 0 for none |
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition

CONTENT_TYPE = exposition.CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one server; several servers in a process do not share them."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        asked, which = ["protocol", "method"], ["signature"]
        self.requests = Counter(
            "kft_requests", "Requests that were answered.", [*asked, "code"], registry=own
        )
        self.request_seconds = Histogram(
            "kft_request_seconds",
            "From a request's first byte to its answer.",
            asked,
            registry=own,
            buckets=_SECONDS,
        )
        self.examples = Counter("kft_examples", "Rows that were answered.", which, registry=own)
        self.batch_examples = Histogram(
            "kft_batch_examples",
            "Rows that were computed together.",
            which,
            registry=own,
            buckets=_EXAMPLES,
        )
        self.batch_seconds = Histogram(
            "kft_batch_seconds",
            "How long the model took for a batch.",
            which,
            registry=own,
            buckets=_SECONDS,
        )
        self.batches_failed = Counter(
            "kft_batches_failed", "Joined batches that failed.", which, registry=own
        )
        self.queue = Gauge("kft_queue_requests", "Requests that wait for the model.", registry=own)
        self.open = Gauge("kft_open_requests", "Requests that are worked on.", registry=own)
        self.version = Gauge(
            "kft_served_version", "The newest version that answers; 0 for none.", registry=own
        )

    def watch_version(self, newest: Callable[[], float]) -> None:
        """Asks for the version whenever the figures are read."""
        self.version.set_function(newest)

    def answered(self, protocol: str, method: str, code: str, seconds: float) -> None:
        """Counts a request."""
        self.requests.labels(protocol, method, code).inc()
        self.request_seconds.labels(protocol, method).observe(seconds)

    def page(self) -> bytes:
        """Returns the figures in Prometheus's text format."""
        return exposition.generate_latest(self._registry)
