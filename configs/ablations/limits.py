"""What limits the student: data, optimisation or capacity.

Each row changes one thing of the base config's distillation. Half of the queries, seen twice as
often, are worse if data limit it. Twice the steps or another learning rate are better if
optimisation does. Half of the layers are as good if capacity does not, and twice the tokens of a
text are better if the student reads too little. For a larger student run the file again with
--config.student.model=NAME and compare the rows. The teacher is what can be reached. Where queries
are generated and the documents have a real log, a row learns as many of the log in their place:
the teacher's scores of queries like those of the test.
"""

LOGS = ('python_docs:',)  # addresses of documents that are a log, too
QUERIES = 550  # about as many as own_documents.py keeps
UNLIMITED = 800  # queries that are halved where data.limit.candidates=0


def half_of_the_queries(config) -> dict:
  twice = {'distill.epochs': 2 * config.distill.epochs}
  if 'generate' in config.stages:
    return twice | {'distill.generated_weight': config.distill.generated_weight / 2}
  return twice | {'data.limit.candidates': (config.data.limit.candidates or UNLIMITED) // 2}


def of_the_log(config) -> dict:
  kept = tuple(s for s in config.stages if s not in ('generate', 'export', 'report'))
  address = config.data.documents
  return {'stages': kept, 'data.candidates': address, 'data.limit.candidates': QUERIES}


def get_rows(config) -> dict:
  c, s = config.distill, config.student
  layers = tuple(s.layers) or (0, 1, 2, 3, 4, 5)
  changes = {
    'as it is': {},
    'half of the queries, twice as often': half_of_the_queries(config),
    'twice the steps': {'distill.epochs': 2 * c.epochs},
    'half the learning rate': {'distill.learning_rate': c.learning_rate / 2},
    'twice the learning rate': {'distill.learning_rate': 2 * c.learning_rate},
    'half of the layers': {'student.layers': layers[::2]},
    'twice the tokens of a text': {
      'student.max_len': 2 * s.max_len,
      'student.row_len': 2 * s.row_len,
    },
  }
  if 'generate' in config.stages and config.data.documents in LOGS:
    changes['as many queries of the log'] = of_the_log(config)
  rows = {name: ('student', each) for name, each in changes.items()}
  return rows | {'teacher': ('teacher', {})}
