"""Your documents, and nothing else: an LLM writes the queries; two cores, small models.

  disranker run --config configs/own_documents.py --workdir runs/documents

No query, click or label is needed. SmolLM2-135M writes a query from each document and scores pages
for it by the likelihood of the query, as it is. MiniLM-L6 learns the scores, and that the query's
own document is the best. As it stands, the documents are those of Python, and 295 judged queries
test the result. Edit the lines marked with "yours"; docs/generate.md has the rest.
"""

from disranker_jax.config import defaults

# Prompts for three kinds of documents: after the document, the beginning of a sentence that its
# query ends. A small model completes a sentence better than it follows an instruction or examples.
MANUAL = '{title}: {summary}\n\nIn short, this page is about how to {query}'
PRODUCT = '{title}: {summary}\n\nPeople find this product by a search for {query}'
ABSTRACT = '{title}: {summary}\n\nIn short, this paper answers the question: {query}'


def get_config():
  c = defaults()
  c.data.documents = 'python_docs:'  # yours: 'jsonl:data/documents.jsonl'
  c.data.test = 'python_docs:'  # yours: 'jsonl:data/test.jsonl', or '' if nothing is judged
  c.data.candidates = 'generated:'
  c.data.clicks = c.data.judgements = ''  # not the labels of Python's documents
  c.stages = ('prepare', 'generate', 'score', 'distill', 'evaluate', 'export', 'report')
  if not c.data.test:
    c.stages = tuple(stage for stage in c.stages if stage != 'evaluate')

  c.generate.template = MANUAL  # yours: PRODUCT, ABSTRACT, or a sentence that fits your documents
  # yours: max_len, the tokens that are read of a document, here and in the next two groups. The run
  # says which share of texts and queries is cut. More tokens take more time; what docs/generate.md
  # says of results was measured with these.
  c.generate.update(shots=0, ends='sentence', max_len=112, max_new=28, temperature=0.5)
  c.generate.update(documents=2000, found_within=10)

  c.teacher.update(model='smollm2-135m', scorer='query_likelihood', remat='none')
  c.teacher.update(max_len=64, max_query_len=24, row_len=128)  # yours; row_len: at least max_len
  c.teacher.template = '{title}: {summary}\n\nSummary: {query}'
  c.score.update(batch_rows=32, group_size=6, judgements=False)

  c.student.update(model='minilm-l6', layers=())
  c.student.update(max_len=64, max_query_len=24, row_len=128)  # yours
  c.distill.update(learning_rate=1.5e-4, batch_rows=32, group_size=6, epochs=2.5, save_every=20)
  c.distill.update(normalize_scores='query', hard_label_weight=0.5, hard_label_margin=0.5)
  # The student soon memorises its few queries. So the result is the checkpoint that agrees best
  # with the teacher on held-out queries, a tenth of them, about the order of their documents.
  c.validation.share = 0.1
  c.distill.validation.update(every=10, keep_best=True, metric='tau')
  c.evaluate.update(models=('random', 'bm25', 'teacher', 'student', 'fused'))
  # 4 is the label of a question's own page in Python's documentation.
  c.evaluate.update(batch_rows=32, min_relevance=4 if c.data.test == 'python_docs:' else 1)
  return c
