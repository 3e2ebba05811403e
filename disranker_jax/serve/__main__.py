"""Serves an exported student over HTTP: `disranker serve --model DIR`.

Scores in answers are between 0 and 1: the sigmoid of the model's score. With "raw_scores": true in
a request they are the model's own, which the page, `disranker rerank` and the model card show.
"""

import argparse
import functools
import os
import re
import signal
from pathlib import Path

from disranker_jax.commands.common import Parser, guarded
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import say

TOKEN_ENV = 'DISRANKER_TOKEN'


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('serve', __doc__, '--model runs/quickstart/export/student --port 8080')
  parser.add_argument('--model', required=True, type=Path, help=(
    'an exported model folder, or the folder or the name of a ready reranker'))  # fmt: skip
  parser.add_argument('--host', default='127.0.0.1', help='address to listen on')
  parser.add_argument('--port', type=int, default=8080, help='port; 0: any free one')
  parser.add_argument(
    '--backend', default='auto', choices=('auto', 'onnx-int8', 'onnx', 'jax'),
    help='auto: 8-bit ONNX Runtime on a CPU, JAX on an accelerator',
  )  # fmt: skip
  parser.add_argument('--name', default='', help="the model's name in responses; default: folder")
  parser.add_argument(
    '--docs', metavar='ADDRESS',
    help='collection for the search page: JSON lines of doc_id, title, summary, or an address such '
    'as trec:DIR; default: python_docs:',
  )  # fmt: skip
  parser.add_argument('--rewriter', type=Path, metavar='FOLDER', help=(
    'an exported rewriter, whose rewrites of queries the page searches'))  # fmt: skip
  parser.add_argument('--no-search', action='store_true', help='no search on the page')
  parser.add_argument('--max-texts', type=int, default=1000, help='per request')
  parser.add_argument(
    '--max-body-bytes', type=int, default=2_000_000, help='bytes per request body'
  )
  parser.add_argument(
    '--max-concurrent-requests', type=int, default=512, help='in the server at one time'
  )
  parser.add_argument(
    '--max-held-bytes', type=int, default=100_000_000,
    help='of all requests together; each has the bytes of its body and 1024 per text',
  )  # fmt: skip
  parser.add_argument('--max-batch-tokens', type=int, default=16384, help='per batch')
  parser.add_argument('--timeout', type=float, default=30.0, help='seconds per request')
  parser.add_argument(
    '--keep-alive', type=float, default=75.0, metavar='SECONDS',
    help='seconds between two requests of a connection; must be longer than a proxy keeps idle '
    'connections, which is often 60',
  )  # fmt: skip
  parser.add_argument(
    '--token-env', metavar='NAME',
    help='environment variable with a bearer token that clients must send, which must be set; '
    f'without this flag: {TOKEN_ENV}, if it is set',
  )  # fmt: skip
  parser.add_argument(
    '--open', action='store_true',
    help='answer everybody who reaches --host; needed where that is not this machine only and no '
    'token is set',
  )  # fmt: skip
  parser.add_argument(
    '--allow-host', action='append', default=[], metavar='NAME',
    help='another name by which requests may address the server; may be repeated; default: '
    'localhost, 127.0.0.1 and [::1] if --host is one of them, else any',
  )  # fmt: skip
  parser.add_argument(
    '--cors-allow-origin', action='append', default=[], metavar='ORIGIN',
    help='let pages of this origin, such as https://example.org, call the server; * for any; may '
    'be repeated; default: none',
  )  # fmt: skip
  return parser.parse_args(argv)


def service(args: argparse.Namespace):
  """The service that the arguments describe. Raises: UserError if one of them is wrong."""
  from disranker_jax.models import hf
  from disranker_jax.rankers import loaded
  from disranker_jax.serve.admission import TEXT_BYTES
  from disranker_jax.serve.app import Limits, Service
  from disranker_jax.serve.page import Search, named

  may_call = access_of(args)
  args.model = loaded.locate(args.model)
  loaded.check(args.model)
  if not hf.family(args.model).served:
    raise UserError(f'--model {args.model}: is a decoder; name an exported student')
  for flag in ('max_texts', 'max_body_bytes', 'max_concurrent_requests', 'max_held_bytes',
               'max_batch_tokens', 'timeout', 'keep_alive'):  # fmt: skip
    if getattr(args, flag) <= 0:
      raise UserError(f'--{flag.replace("_", "-")}: must be above 0')
  least = 2 * (args.max_body_bytes + args.max_texts * TEXT_BYTES)
  if args.max_held_bytes < least:
    raise UserError(f'--max-held-bytes: must be at least {least}, twice a request of the largest '
                    'body and the most texts')  # fmt: skip
  limits = Limits(
    args.max_texts, args.max_body_bytes, args.max_concurrent_requests, args.max_held_bytes,
    args.max_batch_tokens, args.timeout, idle_s=args.keep_alive,
  )  # fmt: skip
  rewriter = rewriter_of(args)
  address = args.docs or 'python_docs:'
  search = None
  if not args.no_search:
    search = Search(documents(address), rewriter=rewriter, name=named(address))
  name = args.name or args.model.resolve().name
  load = functools.partial(loaded.load, args.model, args.backend, fast=True)
  return Service(load, name, limits, may_call, search)


def rewriter_of(args: argparse.Namespace):
  """A function that loads the rewriter, or None. Raises: UserError for another kind of folder."""
  if not args.rewriter:
    return None
  if args.no_search:
    raise UserError('--rewriter: rewrites what the page searches; leave out --no-search')
  from disranker_jax.rewriting import loaded

  try:
    loaded.settings_of(args.rewriter)
  except UserError as e:
    raise UserError(f'--rewriter {e}') from None
  return functools.partial(loaded.load, args.rewriter)


def access_of(args: argparse.Namespace):
  """Who may call, by the arguments. Raises: UserError if one of them is wrong."""
  from disranker_jax.serve import access

  for origin in args.cors_allow_origin:
    if not re.fullmatch(r'\*|https?://[^/\s*]+', origin):
      raise UserError(
        f'--cors-allow-origin {origin!r}: must be *, or scheme and host without a path, such as '
        'https://example.org'
      )
  token = access.read_token(os.environ, args.token_env, TOKEN_ENV)
  # An error rather than a warning: nobody reads the log of a container that answers. A secret that
  # is missing would open the server, and whoever wants it open can say so in one word.
  if not (token or args.open or access.is_loopback(args.host)):
    raise UserError(
      f'--host {args.host}: other machines can reach the server, and no token is set; set '
      f'{args.token_env or TOKEN_ENV}, or add --open if everybody may call it'
    )
  hosts = access.allowed_hosts(args.host, args.allow_host)
  return access.Access(token, tuple(args.cors_allow_origin), hosts)


def documents(address: str):
  """A function that reads the collection of the search page."""

  def read():
    from disranker_jax.data import sources

    return sources.documents(address)

  return read


def main(argv=None) -> None:
  args = parse_args(argv)
  # Requests are tokenised in parallel; each must not use all cores for itself.
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  runtime.prepare()
  try:
    from disranker_jax.serve import access
    from disranker_jax.serve.app import build
    from disranker_jax.serve.connection import open_server
  except ImportError as e:
    what = "pip install -e '.[serve]' in the checkout"
    raise UserError(f'{e.name} is missing: {what}') from None

  served = service(args)
  if not (served.access.token or access.is_loopback(args.host)):
    say(f'serve: no token is set: everybody who reaches {args.host}:{args.port} is answered')
  server = open_server(
    build(served), args.host, args.port, served, log_level='info',
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
