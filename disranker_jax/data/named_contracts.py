"""The contracts that have a name: our own prompts, and those that public rerankers were trained on.

The texts of public rerankers have to be theirs to the byte, line ends and missing words included.
"""

import dataclasses
import string
from pathlib import Path

from disranker_jax.data import contracts
from disranker_jax.data.contracts import Contract
from disranker_jax.errors import UserError

LETTERS = tuple(string.ascii_uppercase[:20])
AFTER_SPACE = tuple(f' {letter}' for letter in LETTERS)
RANK_LLM = (
  'You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to '
  'the query'
)


def _list_prompt(kind: str, example: str, ending: str) -> str:
  """RankZephyr's prompt; the alphabetical form is that of FIRST."""
  return (
    f'I will provide you with {{count}} passages, each indicated by {kind} identifier []. Rank the '
    'passages based on their relevance to the search query: {query}.\n{documents}'
    'Search Query: {query}.\nRank the {count} passages above based on their relevance to the '
    'search query. All the passages should be included and listed using identifiers, in '
    f'descending order of relevance. The output format should be [] > [], e.g., {example}, {ending}'
  )


QWEN3_YES_NO = {
  'labels': ('yes', 'no'),
  'formula': 'difference',
  'bos': 'none',
  'instruction': 'Given a web search query, retrieve relevant passages that answer the query',
}
QWEN3_SYSTEM = (
  '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and '
  'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
  '<|im_start|>user\n'
)
CONCISE = (
  'Answer concisely and directly and only respond with the ranking results, do not say any word or '
  'explain.'
)

CONTRACTS = (
  Contract(
    'yes_no',
    (
      'Passage: {document}\nQuery: {query}\nDoes the passage answer the query? Answer Yes or No.\n'
      'Answer:',
    ),
    labels=(' Yes', ' No'),
    formula='difference',
  ),
  Contract(
    'graded',
    (
      'From a scale of 0 to 4, judge the relevance of the passage to the query. 0 means not '
      'relevant, 4 means perfectly relevant.\nQuery: {query}\nPassage: {document}\nGrade:\n',
    ),
    labels=('0', '1', '2', '3', '4'),
    formula='expectation',
  ),
  # The zero-shot row of a run reads the same by default.
  Contract('query_likelihood', ('{title} : {summary} : {query}',), formula='likelihood'),
  Contract(
    'qwen3_reranker',
    (
      QWEN3_SYSTEM,
      '<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}',
      '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    ),
    **QWEN3_YES_NO,
  ),
  # As the same authors' code for vLLM and MTEB writes it: blank lines between the fields, and the
  # user's turn ends twice, once by the chat template and once by the suffix.
  Contract(
    'qwen3_reranker_vllm',
    (
      f'{QWEN3_SYSTEM}<Instruct>: {{instruction}}\n\n<Query>: {{query}}\n\n<Document>: {{document}}'
      '<|im_end|>\n',
      '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    ),
    **QWEN3_YES_NO,
  ),
  # The query is the system message, the document the user's.
  Contract(
    'zerank', ('{document}',), labels=('Yes',), formula='raw', bos='none', chat=True,
    system='{query}',
  ),
  Contract(
    'mxbai_v2',
    (
      '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
      '<|im_end|>\n<|im_start|>user\n',
      '{instruction}query: {query}',
      '\n',
      'document: {document}',
      '\n',
      'You are a search relevance expert who evaluates how well documents match search queries. '
      'For each query-document pair, carefully analyze the semantic relationship between them, '
      'then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n'
      'Relevance:',
      '<|im_end|>\n<|im_start|>assistant\n',
    ),
    labels=('1', '0'),
    formula='difference',
    bos='none',
    instruction_line='instruction: {instruction}\n',
  ),
  Contract(
    'bge_gemma',
    (
      'A: {query}',
      '\n',
      'B: {document}',
      '\n',
      'Given a query A and a passage B, determine whether the passage contains an answer to the '
      "query by providing a prediction of either 'Yes' or 'No'.",
    ),
    labels=('Yes',),
    formula='raw',
  ),
  # The pair of texts with which the released weights were evaluated: both begin with <s>.
  Contract(
    'rankllama_v1', ('query: {query}', 'document: {title} {summary}'), formula='head', bos='each'
  ),
  # Prefixes that end in a space, joined by spaces.
  Contract(
    'rankllama_tevatron', ('query:  {query} document:  {title} {summary}',), formula='head'
  ),
  Contract(
    'rankllama_paper', ('query: {query} document: {title} {summary}',), formula='head', eos=True
  ),
  Contract(
    'prp',
    (
      'Given a query "{query}", which of the following two passages is more relevant to the query?'
      '\n\n{documents}Output Passage A or Passage B:',
    ),
    item='Passage {label}: "{document}"\n\n',
    labels=(' A', ' B'),
    answer=' Passage',
  ),
  Contract(
    'setwise',
    (
      'Given a query "{query}", which of the following passages is the most relevant one to the '
      'query?\n\n{documents}Output only the passage label of the most relevant passage:',
    ),
    item='Passage {label}: "{document}"\n\n',
    labels=AFTER_SPACE,
    answer=' Passage',
  ),
  Contract(
    'listwise',
    (_list_prompt('an alphabetical', '[B] > [A]', CONCISE) + '\nRanking: ',),
    item='[{label}] {document}\n',
    labels=LETTERS,
    answer='[',
    separator='] > [',
  ),
  Contract(
    'first',
    (_list_prompt('an alphabetical', '[B] > [A]', CONCISE),),
    item='[{label}] {document}\n',
    labels=LETTERS,
    answer='[',
    separator='] > [',
    chat=True,
    system=RANK_LLM,
  ),
  # With several digits in a label; only for answers that the model writes.
  Contract(
    'rankzephyr',
    (_list_prompt('a numerical', '[2] > [1]', CONCISE),),
    item='[{label}] {document}\n',
    labels=tuple(str(number) for number in range(1, 21)),
    separator='] > [',
    chat=True,
    system=RANK_LLM,
  ),
)  # fmt: skip
NAMED = {contract.name: contract for contract in CONTRACTS}


def find(name: str, **changes) -> Contract:
  """A contract by name, or that of a JSON file, with some fields changed.

  Raises: UserError if there is neither.
  """
  if name.endswith('.json'):
    found = contracts.read(Path(name).expanduser())
  elif name in NAMED:
    found = NAMED[name]
  else:
    raise UserError(
      f'contract {name!r}: there is none of this name; choose of {", ".join(NAMED)}, or name a '
      'JSON file'
    )
  return dataclasses.replace(found, **changes) if changes else found
