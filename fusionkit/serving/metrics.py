"""Numbers for Prometheus: how many requests of each kind there were, how long they took, and what waits."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Of one service. Kinds and statuses are few and known, so that nothing grows with the requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fusionkit_requests", "requests by kind and status", ["kind", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            *("fusionkit_request_seconds", "from a request's head to the end of its answer", ["kind"]),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            *("fusionkit_batch_size", "requests that were computed together", ["kind"]),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.open = Gauge("fusionkit_open_requests", "requests that are not answered yet", registry=self.registry)
        self.waiting = Gauge("fusionkit_waiting_requests", "requests that wait for the model", registry=self.registry)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)
