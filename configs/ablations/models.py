"""Which model ranks best (the paper's table 2).

First stage, zero-shot LLM, student on labels alone, teachers with and without rank loss and
continued pre-training, distilled student. Teachers score as the base config says, except those on
</s>: they have a new dense layer there, as in the paper, and more steps to train it.
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
