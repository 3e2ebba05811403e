"""Which LLM ranks best, and what a student can learn from it (the paper's table 2).

The pretrained LLM by prompts, LLMs that labels train, and the student by what it learns from:
labels, the teacher, or the prompts' answers (instruction distillation). Students of scores alone
start without labels and see 150 queries of four documents; PRP answers 12 prompts per query, query
likelihood four. RankLLaMA and LLM2Vec have a new linear head, which needs more steps.
"""

LIMITS = {'query_tokens': 20, 'doc_tokens': 48}
PROMPTS = {f'evaluate.prompts.{key}': value for key, value in LIMITS.items()}
HEAD = {'teacher.scorer': 'score_head', 'sft.trainable': 'lora|score'}
ALONE = {
  'data.limit.candidates': 150,
  'score.judgements': False,
  'score.group_size': 4,
  'distill.init_from': '',
  'distill.hard_label_weight': 0.0,
  'distill.epochs': 8.0,
}
BY_PROMPTS = {f'score.prompts.{key}': value for key, value in LIMITS.items()} | {
  'stages': ('prepare', 'score', 'distill', 'evaluate'),
  'score.max_tied_share': 1.0,
  'distill.loss': 'ranknet',
  'distill.normalize_scores': '',
}

ROWS = {
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
  'RankLLaMA': (
    'teacher',
    HEAD | {'stages': ('prepare', 'sft', 'evaluate'), 'sft.loss': 'info_nce', 'sft.max_steps': 60},
  ),
  'TSRankGPT': (
    'teacher',
    {'sft.loss': 'perplexity_nce', 'sft.lm_weight': 1.0, 'sft.kl_weight': 1.0},
  ),
  'LLM2Vec': (
    'teacher',
    HEAD
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
  "DisRanker's teacher": ('teacher', {}),
  'student, labels only': ('student_sft', {}),
  'student of the teacher': ('student', {}),
  "student of the teacher's scores alone": ('student', ALONE),
  'student by instruction distillation': (
    'student',
    ALONE | BY_PROMPTS | {'score.method': 'prp_allpair_soft'},
  ),
  'student of query likelihood, zero-shot': (
    'student',
    ALONE | BY_PROMPTS | {'score.method': 'query_likelihood'},
  ),
}
