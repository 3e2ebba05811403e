"""Serves an exported student over HTTP: `disranker serve --model DIR`."""

import argparse
import os
import signal
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='disranker serve', description=__doc__)
  parser.add_argument('--model', required=True, type=Path, help='an exported model folder')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen on (this machine)')
  parser.add_argument('--port', type=int, default=8080, help='8080; 0: any that is free')
  parser.add_argument(
    '--backend', default='auto', choices=('auto', 'onnx-int8', 'onnx', 'jax'),
    help='auto: 8 bits by ONNX Runtime on a CPU, JAX on an accelerator',
  )  # fmt: skip
  parser.add_argument('--name', default='', help='what the model is called in answers')
  parser.add_argument('--docs', type=Path, help='what the page searches: JSON lines of doc_id, '
                      'title, summary; default: the documentation of Python')  # fmt: skip
  parser.add_argument('--no-search', action='store_true', help='the page shows no search')
  parser.add_argument('--max-texts', type=int, default=1000, help='of a request (1000)')
  parser.add_argument('--max-body-bytes', type=int, default=2_000_000, help='2,000,000')
  parser.add_argument('--max-concurrent-requests', type=int, default=512, help='in line (512)')
  parser.add_argument('--max-batch-tokens', type=int, default=16384, help='planned at once (16384)')
  parser.add_argument('--timeout', type=float, default=30.0, help='seconds of a request (30)')
  parser.add_argument(
    '--token-env', default='DISRANKER_TOKEN', metavar='NAME',
    help='environment variable with a bearer token that clients must send; unset: none',
  )  # fmt: skip
  return parser.parse_args(argv)


def loader(folder: Path, name: str):
  """A function that opens the model: (backend, prompt)."""

  def load():
    from disranker_jax.exporting import formats
    from disranker_jax.models.load import open_tokenizer
    from disranker_jax.serve import backends

    lengths = formats.lengths(folder)
    chosen = backends.best(folder) if name == 'auto' else name
    backend = backends.open_backend(folder, chosen)
    return backend, formats.family(folder).prompt(open_tokenizer(folder), **lengths)

  return load


def service(args: argparse.Namespace):
  """The service that the arguments describe; UserError for what is wrong with them."""
  from disranker_jax.models import families, hf
  from disranker_jax.serve.app import Limits, Service
  from disranker_jax.serve.page import Search

  config = hf.read_config(args.model)
  served = families.find(config['model_type']).served
  if not served or len(config.get('id2label') or {}) != 1:
    raise UserError(
      f'--model {args.model}: is not a cross-encoder with one label; name an exported student'
    )
  for flag in ('max_texts', 'max_body_bytes', 'max_concurrent_requests', 'max_batch_tokens',
               'timeout'):  # fmt: skip
    if getattr(args, flag) <= 0:
      raise UserError(f'--{flag.replace("_", "-")}: must be above 0')
  limits = Limits(
    args.max_texts, args.max_body_bytes, args.max_concurrent_requests, args.max_batch_tokens,
    args.timeout,
  )  # fmt: skip
  search = None if args.no_search else Search(documents(args.docs))
  name = args.name or args.model.resolve().name
  token = os.environ.get(args.token_env, '')
  return Service(loader(args.model, args.backend), name, limits, token, search)


def documents(file: Path | None):
  """A function that reads what the page searches."""

  def read():
    from disranker_jax.data import python_docs, sources

    return sources.documents(file) if file else python_docs.documents()

  return read


def main(argv=None) -> None:
  args = parse_args(argv)
  # Requests are tokenised side by side; each over all cores would only stand in the others' way.
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  runtime.prepare()
  try:
    from disranker_jax.serve.app import build
    from disranker_jax.serve.connection import open_server
  except ImportError as e:
    raise UserError(f'{e.name} is missing: pip install "disranker_jax[serve]"') from None

  the = service(args)
  server = open_server(
    build(the), args.host, args.port, log_level='info',
    timeout_graceful_shutdown=int(args.timeout) + 1,
  )  # fmt: skip
  the.failed = lambda: setattr(server, 'should_exit', True)
  # uvicorn drains and then sends itself the signal again, which would be an exit status of 143.
  signal.signal(signal.SIGTERM, lambda *_: None)
  server.run()
  if isinstance(the.failure, UserError):
    raise the.failure
  if the.failure:
    raise RuntimeError('the model could not be loaded') from the.failure


if __name__ == '__main__':
  with guarded():
    main()
