"""What limits the student: data, optimisation or capacity.

Each row changes one thing of the base config's distillation. Half of the queries, seen twice as
often, are worse if data limit it; with a log the row needs --config.data.limit.candidates, because
half of all queries is not known here. Twice the steps or another learning rate are better if
optimisation does. Half of the layers are as good if capacity does not, and twice the tokens of a
text are better if the student reads too little. For a larger student run the file again with
--config.student.model=NAME and --config.student.layers, and compare the rows. The teacher is what
can be reached. Where queries are generated and the documents have a real log, a row learns as many
of the log in their place: the teacher's scores of queries like those of the test.
"""

from disranker_jax.models import tiny

LOGS = ('python_docs:',)  # addresses of documents that are a log, too
QUERIES = 550  # about as many as own_documents.py keeps
LAYERS = {'minilm-l6': 6, 'tiny-encoder': tiny.CONFIGS['tiny-encoder']['num_hidden_layers']}


def half_of_the_queries(config) -> tuple:
  changes, needs = {'distill.epochs': 2 * config.distill.epochs}, ''
  if 'generate' in config.stages:
    changes['distill.generated_weight'] = config.distill.generated_weight / 2
  if config.data.candidates not in ('', 'generated:'):
    needs = 'data.limit.candidates'
    changes[needs] = config.data.limit.candidates // 2
  return 'student', changes, needs


def half_of_the_layers(student) -> tuple:
  """Every second layer; which ones there are is known of a few models, or config.student.layers."""
  if student.layers or student.model not in LAYERS:
    return 'student', {'student.layers': tuple(student.layers)[::2]}, 'student.layers'
  return 'student', {'student.layers': tuple(range(LAYERS[student.model]))[::2]}


def of_the_log(config) -> dict:
  kept = tuple(s for s in config.stages if s not in ('generate', 'export', 'report'))
  address = config.data.documents
  return {'stages': kept, 'data.candidates': address, 'data.limit.candidates': QUERIES}


def get_rows(config) -> dict:
  c, s = config.distill, config.student
  changes = {
    'twice the steps': {'distill.epochs': 2 * c.epochs, 'distill.max_steps': 2 * c.max_steps},
    'half the learning rate': {'distill.learning_rate': c.learning_rate / 2},
    'twice the learning rate': {'distill.learning_rate': 2 * c.learning_rate},
    'twice the tokens of a text': {
      'student.max_len': 2 * s.max_len,
      'student.row_len': 2 * s.row_len,
    },
  }
  if 'generate' in config.stages and config.data.documents in LOGS:
    changes['as many queries of the log'] = of_the_log(config)
  return {
    'as it is': ('student', {}),
    'half of the queries, twice as often': half_of_the_queries(config),
    **{name: ('student', each) for name, each in changes.items()},
    'half of the layers': half_of_the_layers(s),
    'teacher': ('teacher', {}),
  }
