"""A BERT teaches a smaller BERT, both cross-encoders: the uniform-architecture recipe.

  disranker run --config configs/uniform_architecture.py --workdir runs/uniform

all-MiniLM-L6-v2, fine-tuned, teaches three of its own layers. The student learns the teacher's
scores (Point-MSE + beta * Margin-MSE) and, with the same weight, pairs of hard labels where a query
has them; the study (arXiv:2302.04112) finds these critical. The term on hidden states is off
(distill.hidden_weight): the study finds that it may hurt. It helped in
experiments/hidden-uniform_architecture.md. Data and sizes are the quickstart's.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.teacher.update(model='minilm-l6', scorer='score_head', lora_rank=0, scan_layers=False)
  c.sft.update(trainable='.*', batch_rows=40, group_size=6, epochs=3.0, max_steps=0)
  c.student.layers = (0, 2, 4)
  c.distill.update(init_from='', loss='hybrid', hard_label_weight=1.0, hard_label_margin=0.5)
  c.evaluate.models = ('random', 'bm25', 'student_sft', 'teacher', 'student')
  return c
