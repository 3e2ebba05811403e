"""Your data, your models: edit the four addresses and the two names, then run it.

  disranker run --config configs/own_data.py

A copy of this file named mine.py is another run, runs/mine. Addresses are `jsonl:FILE` or
`parquet:FILE` (globs and .gz work), `trec:FOLDER`, and more; docs/data.md has the fields. Model
names are local folders or Hugging Face names, see docs/models.md. Everything else is the paper's;
add --explain to see all settings. On two cores start with small models, as configs/quickstart.py
does. A 7B teacher needs accelerators, see configs/disranker_mistral_7b.py: unchanged, this config
is planned for v5p:2x2x4, 16 chips that share one copy of the parameters.
"""

from disranker_jax.config import defaults


def get_config():
  c = defaults()
  c.data.clicks = 'jsonl:data/clicks*.jsonl.gz'
  c.data.judgements = 'jsonl:data/judgements.jsonl'
  c.data.candidates = 'jsonl:data/candidates*.jsonl.gz'
  c.data.test = 'jsonl:data/test.jsonl'
  c.teacher.model = 'mistralai/Mistral-7B-v0.1'
  # Every other layer of twelve. Another model has other layers; layers=() takes all.
  c.student.update(model='google-bert/bert-base-multilingual-cased', layers=(0, 2, 4, 6, 8, 10))
  # Rows of two full-length documents have less padding than rows of one.
  for side in (c.teacher, c.student):
    side.row_len = 512
  for stage in (c.cpt, c.sft, c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows = 32
  c.mesh.update(data=1, fsdp=-1)  # all chips share one copy of the parameters
  return c
