"""Your data, your models: edit the four addresses and the two names, then run it.

  disranker run --config configs/own_data.py --workdir runs/own_data

Addresses are `jsonl:FILE` or `parquet:FILE` (globs and .gz are fine), `trec:FOLDER`, and more;
README.md has the fields, docs/data.md all the rest.
Model names are local folders or Hugging Face names. The rest is the paper's: see
disranker_jax/config.py for every setting. On two cores start with small models, as in
configs/quickstart.py; a 7B teacher wants accelerators, as in configs/disranker_mistral_7b.py: as it
stands this config is planned for v5p:2x2x4, 16 chips that share one copy of the parameters.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.name = 'own_data'
  c.data.clicks = 'jsonl:data/clicks*.jsonl.gz'
  c.data.judgements = 'jsonl:data/judgements.jsonl'
  c.data.candidates = 'jsonl:data/candidates*.jsonl.gz'
  c.data.test = 'jsonl:data/test.jsonl'
  c.teacher.model = 'mistralai/Mistral-7B-v0.1'
  c.student.model = 'google-bert/bert-base-multilingual-cased'
  # Two documents of full length to a row: less of it stays free than with one.
  for side in (c.teacher, c.student):
    side.row_len = 512
  for stage in (c.cpt, c.sft, c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows = 32
  c.mesh.update(data=1, fsdp=-1)  # all chips share one copy of the parameters
  return c
