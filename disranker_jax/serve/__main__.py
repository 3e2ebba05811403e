"""Serves an exported student over HTTP: `disranker serve --model DIR`."""

import argparse
import functools
import os
import re
import signal
from pathlib import Path

from disranker_jax.commands.common import Parser, guarded
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('serve', __doc__, '--model runs/quickstart/export/student --port 8080')
  parser.add_argument('--model', required=True, type=Path, help='an exported model folder')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen on')
  parser.add_argument('--port', type=int, default=8080, help='port; 0: any free one')
  parser.add_argument(
    '--backend', default='auto', choices=('auto', 'onnx-int8', 'onnx', 'jax'),
    help='auto: 8-bit ONNX Runtime on a CPU, JAX on an accelerator',
  )  # fmt: skip
  parser.add_argument('--name', default='', help="the model's name in responses; default: folder")
  parser.add_argument('--docs', type=Path, help='collection for the search page: JSON lines of '
                      'doc_id, title, summary; default: the Python documentation')  # fmt: skip
  parser.add_argument('--no-search', action='store_true', help='no search on the page')
  parser.add_argument('--max-texts', type=int, default=1000, help='per request')
  parser.add_argument(
    '--max-body-bytes', type=int, default=2_000_000, help='bytes per request body'
  )
  parser.add_argument('--max-concurrent-requests', type=int, default=512, help='in queue')
  parser.add_argument('--max-batch-tokens', type=int, default=16384, help='per batch')
  parser.add_argument('--timeout', type=float, default=30.0, help='seconds per request')
  parser.add_argument(
    '--token-env', default='DISRANKER_TOKEN', metavar='NAME',
    help='environment variable with a bearer token that clients must send; unset: no token',
  )  # fmt: skip
  parser.add_argument(
    '--cors-allow-origin', action='append', default=[], metavar='ORIGIN',
    help='let pages of this origin, such as https://example.org, call the server; * for any; may '
    'be repeated; default: none',
  )  # fmt: skip
  return parser.parse_args(argv)


def service(args: argparse.Namespace):
  """The service that the arguments describe. Raises: UserError if one of them is wrong."""
  from disranker_jax.exporting import formats
  from disranker_jax.rankers import loaded
  from disranker_jax.serve.app import Limits, Service
  from disranker_jax.serve.page import Search

  loaded.check(args.model)
  if not formats.family(args.model).served:
    raise UserError(f'--model {args.model}: is a decoder; name an exported student')
  for flag in ('max_texts', 'max_body_bytes', 'max_concurrent_requests', 'max_batch_tokens',
               'timeout'):  # fmt: skip
    if getattr(args, flag) <= 0:
      raise UserError(f'--{flag.replace("_", "-")}: must be above 0')
  for origin in args.cors_allow_origin:
    if not re.fullmatch(r'\*|https?://[^/\s*]+', origin):
      raise UserError(
        f'--cors-allow-origin {origin!r}: must be *, or scheme and host without a path, such as '
        'https://example.org'
      )
  limits = Limits(
    args.max_texts, args.max_body_bytes, args.max_concurrent_requests, args.max_batch_tokens,
    args.timeout,
  )  # fmt: skip
  search = None if args.no_search else Search(documents(args.docs))
  name = args.name or args.model.resolve().name
  token = os.environ.get(args.token_env, '')
  load = functools.partial(loaded.load, args.model, args.backend, fast=True)
  return Service(load, name, limits, token, search)


def documents(file: Path | None):
  """A function that reads the collection of the search page."""

  def read():
    from disranker_jax.data import python_docs, sources

    return sources.documents(file) if file else python_docs.documents()

  return read


def main(argv=None) -> None:
  args = parse_args(argv)
  # Requests are tokenised in parallel; each must not use all cores for itself.
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  runtime.prepare()
  try:
    from disranker_jax.serve.app import build
    from disranker_jax.serve.connection import open_server
  except ImportError as e:
    what = "pip install -e '.[serve]' in the checkout"
    raise UserError(f'{e.name} is missing: {what}') from None

  served = service(args)
  server = open_server(
    build(served, args.cors_allow_origin), args.host, args.port, log_level='info',
    timeout_graceful_shutdown=int(args.timeout) + 1,
  )  # fmt: skip
  served.on_failure = lambda: setattr(server, 'should_exit', True)
  # After draining, uvicorn sends itself the signal again, which would exit with status 143.
  signal.signal(signal.SIGTERM, lambda *_: None)
  server.run()
  if isinstance(served.failure, UserError):
    raise served.failure
  if served.failure:
    raise RuntimeError('the model could not be loaded') from served.failure


if __name__ == '__main__':
  with guarded():
    main()
