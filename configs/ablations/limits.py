"""What limits the student: data, optimisation or capacity.

Each row changes one thing of the base config's distillation. Half of the queries, seen twice as
often, are worse if data limit it. Twice the steps or another learning rate are better if
optimisation does. Half of the layers are as good if capacity does not, and twice the tokens of a
text are better if the student reads too little. For a larger student run the file again with
--config.student.model=NAME and compare the rows. The teacher is what can be reached. Where queries
are generated and the documents have a real log, a row learns as many of the log in their place:
teacher's scores of queries like those of the test.
"""

LOGS = ('python_docs:',)  # addresses of documents that are a log, too
UNLIMITED = 800  # queries that are halved where data.limit.candidates=0


def half_of_the_queries(config):
  c, log = config.distill, config.data.limit.candidates or UNLIMITED
  if 'generate' in config.stages:
    half = {'distill.generated_weight': c.generated_weight / 2}
  else:
    half = {'data.limit.candidates': log // 2}
  return half | {'distill.epochs': 2 * c.epochs}


def times(key: str, factor: float):
  """A row in which one number of the distillation is multiplied."""
  return lambda config: {f'distill.{key}': factor * config.distill[key]}


def half_of_the_layers(config):
  layers = tuple(config.student.layers) or (0, 1, 2, 3, 4, 5)
  return {'student.layers': layers[::2]}


def longer_texts(config):
  return {f'student.{key}': 2 * config.student[key] for key in ('max_len', 'row_len')}


def queries_of_the_log(config):
  address = config.data.documents
  if 'generate' not in config.stages or address not in LOGS:
    return None
  kept = tuple(s for s in config.stages if s not in ('generate', 'export', 'report'))
  return {'stages': kept, 'data.candidates': address, 'data.limit.candidates': 550}


ROWS = {
  'as it is': ('student', {}),
  'half of the queries, twice as often': ('student', half_of_the_queries),
  'twice the steps': ('student', times('epochs', 2.0)),
  'half the learning rate': ('student', times('learning_rate', 0.5)),
  'twice the learning rate': ('student', times('learning_rate', 2.0)),
  'half of the layers': ('student', half_of_the_layers),
  'twice the tokens of a text': ('student', longer_texts),
  'as many queries of the log': ('student', queries_of_the_log),
  'teacher': ('teacher', {}),
}
