"""The server's Prometheus metrics: requests by status, time per step, padding in batches."""

from collections.abc import Callable

import prometheus_client as prometheus

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PARTS = {
  'tokenise': 'tokenising',
  'queue': 'waiting in the queue',
  'infer': 'running the model',
  'total': 'from the end of its body to the scores',
}


class Metrics:
  """The server's metrics, in their own registry."""

  def __init__(self, inside: Callable[[], int]):
    """`inside()` returns how many requests are inside the server."""
    self.registry = prometheus.CollectorRegistry()
    options = {'registry': self.registry}
    self._requests = prometheus.Counter(
      'disranker_requests', 'Requests by path and status.', ['path', 'status'], **options
    )
    self._texts = prometheus.Counter('disranker_texts', 'Query-text pairs scored.', **options)
    self._truncated = prometheus.Counter('disranker_truncated', 'Pairs truncated.', **options)
    self._tokens = prometheus.Counter(
      'disranker_tokens', 'Tokens scored, without padding.', **options
    )
    self._padding = prometheus.Counter(
      'disranker_padding_tokens', 'Padding tokens computed.', **options
    )
    self._seconds = {
      part: prometheus.Histogram(
        f'disranker_{part}_seconds', f'Seconds per request {what}.', buckets=SECONDS, **options
      )
      for part, what in PARTS.items()
    }
    queue = prometheus.Gauge('disranker_queue', 'Requests whose answer is not finished.', **options)
    queue.set_function(inside)

  def answered(self, path: str, status: int) -> None:
    """Counts one response."""
    self._requests.labels(path, status).inc()

  def scored(self, texts: int, truncated: int, seconds: dict[str, float]) -> None:
    """Counts one scored request; `seconds` has a value for each of PARTS."""
    self._texts.inc(texts)
    self._truncated.inc(truncated)
    for part, value in seconds.items():
      self._seconds[part].observe(value)

  def computed(self, tokens: int, with_padding: int) -> None:
    """Counts one call of the model."""
    self._tokens.inc(tokens)
    self._padding.inc(max(0, with_padding - tokens))

  def text(self) -> bytes:
    """The metrics in Prometheus's text format."""
    return prometheus.generate_latest(self.registry)
