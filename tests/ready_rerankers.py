"""Tiny random rerankers as transformers writes them, each with a tokenizer of its family's kind."""

import hf_reference as reference
import small_tokenizers as small

MAX_LEN = 64
BERT = ('[CLS] $A [SEP]', '[CLS] $A [SEP] $B:1 [SEP]:1')
TYPES = {'model_input_names': ['input_ids', 'token_type_ids', 'attention_mask']}
BERT_TOKENS = {'pad_token': '[PAD]', 'unk_token': '[UNK]', 'cls_token': '[CLS]',
               'sep_token': '[SEP]'}  # fmt: skip
ROBERTA_TOKENS = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>',
                  'unk_token': '<unk>', 'cls_token': '<s>', 'sep_token': '</s>'}  # fmt: skip
END = '<|endoftext|>'
QWEN_TOKENS = {'eos_token': END, 'pad_token': END}
KINDS = {
  'bert': (lambda: small.framed(small.wordpiece(), *BERT), BERT_TOKENS | TYPES),
  # Its tokenizer does not say that the model reads token types, so that it is run without them.
  'electra': (lambda: small.framed(small.wordpiece(), *BERT), BERT_TOKENS),
  'distilbert': (
    lambda: small.framed(small.wordpiece(), BERT[0], '[CLS] $A [SEP] $B [SEP]'), BERT_TOKENS
  ),
  'xlm-roberta': (
    lambda: small.framed(small.unigram(), '<s> $A </s>', '<s> $A </s> </s> $B </s>'),
    ROBERTA_TOKENS,
  ),
  'qwen3': (small.byte_bpe, QWEN_TOKENS),
  'llama': (
    lambda: small.framed(small.unigram(), '<s> $A', '<s> $A $B'),
    {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'},
  ),
}  # fmt: skip


def transformers_folder(folder, kind: str, labels: int = 1, **config):
  """A tiny random sequence classifier of transformers, with its tokenizer."""
  make, special = KINDS[kind]
  tokenizer = small.opened(make(), model_max_length=MAX_LEN, **special)
  # RoBERTa's table begins with the positions of padding.
  places = MAX_LEN + 2 if kind == 'xlm-roberta' else MAX_LEN
  settings = {'pad_token_id': tokenizer.pad_token_id, 'max_position_embeddings': places}
  model = reference.model(
    kind, 'SequenceClassification', vocab_size=len(tokenizer), **settings | config
  )
  if labels != 1:
    model = type(model)(type(model.config)(**model.config.to_dict() | {'num_labels': labels}))
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder
