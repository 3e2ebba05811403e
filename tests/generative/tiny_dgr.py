"""configs/dgr.py with tiny models on a small collection."""

import pathlib
import runpy

ROOT = pathlib.Path(__file__).parents[2]


def config(addresses: dict[str, str], **changes):
  """The config for addresses of data; changes by dotted key, written with two underscores."""
  c = runpy.run_path(str(ROOT / 'configs' / 'dgr.py'))['get_config']()
  c.data.update(addresses)
  for role in ('teacher', 'retriever'):
    c[role].update(model='tiny-decoder', precision='float32', lora_rank=4, max_len=96, row_len=96)
  for stage in ('cpt', 'memorise', 'ltrgr', 'align'):
    c[stage].update(batch_rows=8, max_steps=3, save_every=100)
  # Enough to find pages by n-grams that weigh something.
  c.memorise.update(trainable='.*', learning_rate=5e-3, max_steps=0, epochs=12.0)
  c.align.refresh = 2
  c.generate.update(batch_rows=8, max_new=6)
  # By the mean of their tokens the pseudo-queries of so small a model weigh nothing.
  c.retrieve.update(beams=3, batch_rows=8, depth=4, queries=0, query_form='capped')
  c.retrieve.shard_seconds = 0.0  # one shard for each batch of queries
  c.search.training_queries = 4
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c
