"""A BERT teaches a smaller one, both cross-encoders: the uniform-architecture recipe.

disranker run --config configs/uniform_architecture.py --workdir runs/uniform

all-MiniLM-L6-v2, fine-tuned, teaches three of its own layers. The student learns the teacher's
scores (Point-MSE + beta * Margin-MSE) and, with the same weight, pairs of hard labels where a query
has them, which the study finds critical. The term on hidden states, which it finds may hurt, is off
(distill.hidden_weight; it helped in experiments/hidden-uniform_architecture.md). Data and sizes are
those of the quickstart.
"""

import pathlib
import runpy


def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).with_name('quickstart.py')))['get_config']()
  c.name = 'uniform_architecture'
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.teacher.update(model='minilm-l6', scorer='score_head', lora_rank=0, scan_layers=False)
  c.sft.update(trainable='.*', batch_rows=40, group_size=6, epochs=3.0, max_steps=0)
  c.student.layers = (0, 2, 4)
  c.distill.update(init_from='', loss='hybrid', hard_label_weight=1.0, hard_label_margin=0.5)
  c.evaluate.models = ('random', 'bm25', 'student_sft', 'teacher', 'student')
  return c
