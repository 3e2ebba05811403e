"""A trained rewriter on a task of BRIGHT, beside the model that it began with, by nDCG@10.

  disranker run --config configs/bright.py --workdir runs/bright/biology \
    --config.rewriter.init_from=/bucket/rewriting

The rewriter is one that `tongsearch_qwen_1_5b.py` trained, with the same prompt and lengths. One
that was trained elsewhere, as a Hugging Face folder, is the row `pretrained`:

  disranker run --config configs/bright.py --workdir runs/bright/biology \
    --config.rewriter.model=FOLDER --config.search.models=original,rm3,pretrained

`data/BRIGHT` is a copy of the dataset xlangai/BRIGHT, and `task` one of its twelve; excluded
documents are taken out of every ranking. The search engine is BRIGHT's own BM25, which weighs the
words of the query too (--config.search.engine=bm25 is the plain one). No training.

All tasks of the copy, and then the means over them that BRIGHT reports:

  for file in data/BRIGHT/examples/*-of-*; do task=$(basename "${file%-*-of-*}")
    disranker run --config configs/bright.py --workdir "runs/bright/$task" \
      --config.data.test="bright:data/BRIGHT?task=$task" \
      --config.rewriter.init_from=/bucket/rewriting; done
  disranker average runs/bright/*
"""

import pathlib
import runpy

# The original query, RM3, the model before any training, and the trained one.
ROWS = ('original', 'rm3', 'pretrained', 'rewrite')


def get_config():
  trained = pathlib.Path(__file__).with_name('tongsearch_qwen_1_5b.py')
  c = runpy.run_path(str(trained))['get_config']()
  c.stages = ('prepare', 'search', 'report')
  c.mesh.model = 1  # so that one device is enough
  c.data.test, c.data.documents = 'bright:data/BRIGHT?task=biology', ''  # '': those of the test
  c.search.update(engine='query_bm25', depth=1000, models=ROWS)
  return c
