"""Another system behind the same web server, one call per request; for `bench serve` only."""

import argparse
import asyncio
import concurrent.futures
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks import _baselines


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--system', required=True)
  parser.add_argument('--model', required=True, type=Path)
  parser.add_argument('--port', required=True, type=int)
  args = parser.parse_args()
  score = _baselines.open_system(args.system, args.model)
  score('warm', ['up'])
  # One call at a time, since each uses all cores.
  pool = concurrent.futures.ThreadPoolExecutor(1)

  async def rerank(request):
    body = await request.json()
    loop = asyncio.get_running_loop()
    scores = await loop.run_in_executor(pool, score, body['query'], body['texts'])
    order = np.argsort(-np.asarray(scores), kind='stable').tolist()
    return JSONResponse([{'index': i, 'score': float(scores[i])} for i in order])

  async def health(_):
    return Response()

  app = Starlette(routes=[Route('/rerank', rerank, methods=['POST']), Route('/health', health)])
  uvicorn.run(app, host='127.0.0.1', port=args.port, log_level='error', access_log=False)


if __name__ == '__main__':
  main()
