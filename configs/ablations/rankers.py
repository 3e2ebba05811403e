"""Which LLM ranks best, and what a student can learn from it (the paper's table 2).

The pretrained LLM by prompts, LLMs that labels train, and the student by what it learns from:
labels, the teacher, the prompts' answers (instruction distillation), or the run of another ranker
(config.data.teachers), from which the LLM learns too. Students of scores alone start without labels
and see 150 queries, or those that are written from 150 documents; where an LLM scores, four
documents of each, for which PRP answers 12 prompts and query likelihood four. RankLLaMA and LLM2Vec
have a new linear head, which needs more steps. Without a click log the continued pre-training of
TSRankGPT and LLM2Vec reads judged documents. Rankings of evaluate.runs are rows too.
"""

import re

LIMITS = {'query_tokens': 20, 'doc_tokens': 48}
PROMPTS = {f'evaluate.prompts.{key}': value for key, value in LIMITS.items()}
QUERIES = 150  # of a student of scores alone
NO_CPT = {'stages': ('prepare', 'sft', 'evaluate')}
UNTRAINED = {
  'BM25': ('bm25', {}),
  'random order': ('random', {}),
  'query likelihood, zero-shot': ('zero_shot', {}),
  'yes or no': ('yes_no', PROMPTS),
  'grades': ('graded', PROMPTS),
  'PRP, all pairs': ('prp_allpair', PROMPTS),
  'PRP, all pairs, soft': ('prp_allpair_soft', PROMPTS),
  'setwise, one window': ('setwise', PROMPTS),
  'listwise, label logits': ('listwise', PROMPTS),
  'FIRST': ('first', PROMPTS),
}


def alone(config) -> dict:
  """A student that learns nothing but scores, from the pretrained parameters."""
  written = 'generate' in config.stages
  return {
    'generate.documents' if written else 'data.limit.candidates': QUERIES,
    'distill.init_from': '',
    'distill.hard_label_weight': 0.0,
    'distill.epochs': 8.0,
  }


def of_order(config) -> dict:
  """A student that learns the order of the scores, whatever they are."""
  return alone(config) | {'distill.loss': 'ranknet', 'distill.normalize_scores': ''}


def scored(config) -> dict:
  """What the run's own LLM scores for it."""
  return {'score.judgements': False, 'score.group_size': 4}


def by_prompts(config, method: str) -> dict:
  """Scores by prompts of the pretrained LLM."""
  written = ('generate',) if 'generate' in config.stages else ()
  return scored(config) | {
    **{f'score.prompts.{key}': value for key, value in LIMITS.items()},
    'stages': ('prepare', *written, 'score', 'distill', 'evaluate'),
    'score.max_tied_share': 1.0,
    'score.method': method,
  }


def supervised(config) -> dict:
  """The paper's other LLMs that labels train."""
  trainable = config.sft.trainable
  trainable = trainable if re.search(trainable, 'score/kernel') else f'{trainable}|score'
  head = {'teacher.scorer': 'score_head', 'sft.trainable': trainable}
  # Without a click log, the clicks are the judged documents.
  judged = {'stages': ('prepare', 'cpt', 'sft', 'evaluate'), 'data.clicks': 'judgements:'}
  cpt = {} if 'cpt' in config.stages else judged | {'cpt.max_steps': 60}
  return {
    'RankLLaMA': (
      'teacher',
      head
      | NO_CPT
      | {
        'teacher.template': 'query: {query} document: {title} {summary}',
        'sft.loss': 'info_nce',
        'sft.max_steps': 60,
      },
    ),
    'TSRankGPT': (
      'teacher',
      cpt
      | {
        'teacher.scorer': 'query_likelihood',
        'teacher.template': '{title}: {summary}\n\nSummary: {query}',
        'cpt.predict': 'query',
        'sft.loss': 'perplexity_nce',
        'sft.lm_weight': 1.0,
        'sft.kl_weight': 1.0,
      },
    ),
    'LLM2Vec': (
      'teacher',
      cpt
      | head
      | {
        'teacher.bidirectional': True,
        'teacher.pooling': 'mean',
        'teacher.template': '{query} : {title} : {summary}',
        'cpt.objective': 'masked',
        'cpt.predict': 'document',
        'sft.learning_rate': 3e-4,
        'sft.max_steps': 36,
      },
    ),
  }


def get_rows(config) -> dict:
  student = of_order(config)

  rows = {
    **UNTRAINED,
    **{name: (name, {}) for name in config.evaluate.runs},
    **supervised(config),
    **({"DisRanker's teacher, no CPT": ('teacher', NO_CPT)} if 'cpt' in config.stages else {}),
    "DisRanker's teacher": ('teacher', {}),
    'student, labels only': ('student_sft', {}),
    'student of the teacher': ('student', {}),
    "student of the teacher's scores alone": ('student', alone(config) | scored(config)),
    'student by instruction distillation': (
      'student',
      student | by_prompts(config, 'prp_allpair_soft'),
    ),
    'student of query likelihood, zero-shot': (
      'student',
      student | by_prompts(config, 'query_likelihood'),
    ),
  }
  if config.data.teachers:  # which are those of the last two rows alone
    rows = {
      name: (model, {'data.teachers': (), **changes}) for name, (model, changes) in rows.items()
    }
  taught = student | {'stages': ('prepare', 'distill', 'evaluate')}
  ordered = NO_CPT | {
    'data.judgements': 'teachers:',
    'data.negatives.count': 0,
    'data.limit.judgements': QUERIES,
    'sft.loss': 'ranknet',
  }
  return rows | {
    "LLM by another ranker's run": ('teacher', ordered, 'data.teachers'),
    "student of another ranker's run": ('student', taught, 'data.teachers'),
  }
