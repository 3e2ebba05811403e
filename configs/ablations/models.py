"""Who ranks best (the paper's table 2).

First stage, the LLM as it came, the student on labels alone, teachers with and without rank loss
and continued pre-training, and the distilled student. Teachers score as the base config says, but
for those on </s>: a new dense layer there, as in the paper, with more steps, since it starts from
nothing.
"""

NO_CPT = {'stages': ('prepare', 'sft', 'evaluate')}
EOS = {'teacher.scorer': 'score_head', 'sft.trainable': 'lora|score', 'sft.max_steps': 60}

ROWS = {
  'BM25': ('bm25', {}),
  'zero-shot LLM': ('zero_shot', {}),
  'student, labels only': ('student_sft', {}),
  'teacher on </s>, pointwise, no CPT': ('teacher', NO_CPT | EOS | {'sft.loss': 'pointwise_ce'}),
  'teacher on </s>, rank loss, no CPT': ('teacher', NO_CPT | EOS),
  'teacher on </s>, rank loss, CPT': ('teacher', EOS | {'cpt.predict': 'document'}),
  'teacher, rank loss, no CPT': ('teacher', NO_CPT),
  'teacher, CPT only': ('teacher', {'stages': ('prepare', 'cpt', 'evaluate')}),
  'teacher, CPT + rank loss': ('teacher', {}),
  'distilled student': ('student', {}),
}
AGAINST = 'student, labels only'
