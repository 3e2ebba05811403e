"""The server's Prometheus metrics: requests by status, time per step, padding in batches.

Paths are those of the routes that take requests, so no client can add a label.
"""

from collections.abc import Callable, Mapping

import prometheus_client as prometheus

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
STEPS = {
  'rewrite': 'waiting for the rewriter and rewriting the query',
  'search': 'searching the collection',
  'tokenise': 'tokenising',
  'queue': 'waiting in the queue',
  'infer': 'in calls of the model, added up; other requests may share them',
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
      step: prometheus.Histogram(
        f'disranker_{step}_seconds', f'Seconds per request {what}.', ['path'],
        buckets=SECONDS, **options,
      )
      for step, what in STEPS.items()
    }  # fmt: skip
    self._total = prometheus.Histogram(
      'disranker_total_seconds', 'Seconds per request from the end of its body to its answer.',
      ['path', 'status'], buckets=SECONDS, **options,
    )  # fmt: skip
    queue = prometheus.Gauge('disranker_queue', 'Requests whose answer is not finished.', **options)
    queue.set_function(inside)

  def answered(
    self, path: str, status: int, seconds: Mapping[str, float], total: float | None
  ) -> None:
    """Counts one response.

    Args:
      seconds: of those of STEPS that have ended.
      total: seconds since the end of the body; None if it was not read.
    """
    self._requests.labels(path, status).inc()
    for step, value in seconds.items():
      self._seconds[step].labels(path).observe(value)
    if total is not None:
      self._total.labels(path, status).observe(total)

  def scored(self, texts: int, truncated: int) -> None:
    """Counts the texts of one scored request."""
    self._texts.inc(texts)
    self._truncated.inc(truncated)

  def computed(self, tokens: int, with_padding: int) -> None:
    """Counts one call of the model."""
    self._tokens.inc(tokens)
    self._padding.inc(max(0, with_padding - tokens))

  def text(self) -> bytes:
    """The metrics in Prometheus's text format."""
    return prometheus.generate_latest(self.registry)
