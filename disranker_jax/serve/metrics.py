"""What Prometheus sees: where time goes, how full batches are, how many requests were refused."""

import prometheus_client as prometheus

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
  """The server's counters, in a registry of their own."""

  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    options = {'registry': self.registry}
    self._requests = prometheus.Counter(
      'disranker_requests', 'Requests answered.', ['path', 'status'], **options
    )
    self._texts = prometheus.Counter('disranker_texts', 'Query-document pairs scored.', **options)
    self._truncated = prometheus.Counter('disranker_truncated', 'Pairs that were cut.', **options)
    self._tokens = prometheus.Counter('disranker_tokens', 'Tokens scored.', **options)
    self._padding = prometheus.Counter(
      'disranker_padding_tokens', 'Tokens computed beside those, to fill batches.', **options
    )
    self._seconds = {
      part: prometheus.Histogram(
        f'disranker_{part}_seconds', f'Seconds a request: {what}.', buckets=SECONDS, **options
      )
      for part, what in (
        ('tokenise', 'text to tokens'),
        ('queue', 'in line'),
        ('infer', 'calls of the model'),
        ('total', 'all, from the body read to the answer'),
      )
    }

  def watch(self, waiting) -> None:
    """Shows the length of the line, which `waiting()` tells."""
    gauge = prometheus.Gauge('disranker_queue', 'Requests in line.', registry=self.registry)
    gauge.set_function(waiting)

  def answered(self, path: str, status: int) -> None:
    self._requests.labels(path, status).inc()

  def scored(self, texts: int, truncated: int, seconds: dict[str, float]) -> None:
    self._texts.inc(texts)
    self._truncated.inc(truncated)
    for part, value in seconds.items():
      self._seconds[part].observe(value)

  def computed(self, tokens: int, with_padding: int) -> None:
    self._tokens.inc(tokens)
    self._padding.inc(max(0, with_padding - tokens))

  def text(self) -> bytes:
    return prometheus.generate_latest(self.registry)
