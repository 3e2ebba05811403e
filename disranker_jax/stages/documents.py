"""The documents that queries are written from and found among."""

from disranker_jax.data import once, sources
from disranker_jax.data.holdout import place
from disranker_jax.data.records import Document
from disranker_jax.data.source import DOCUMENTS
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, part_of, say
from disranker_jax.stages import prepare

LEAST = 2  # a query with one document has no order to learn


def address(config) -> str:
  """Where the documents are. Raises: UserError if the config does not say it."""
  if not (found := addresses(config)):
    raise UserError(
      'config.data.documents: is empty, but a listed stage reads documents; give an '
      "address, such as 'jsonl:documents.jsonl'"
    )
  return found[0][2]


def addresses(config) -> list[tuple[str, str, str]]:
  """The address of the documents, see Stage.addresses: that of the candidates by default."""
  generated = config.data.candidates == prepare.GENERATED_ADDRESS
  return first_of(config, 'documents', *([] if generated else ['candidates']))


def first_of(config, *keys: str) -> list[tuple[str, str, str]]:
  """The first key of config.data that has an address, as one that is read for its documents."""
  given = [(f'data.{key}', DOCUMENTS, config.data[key]) for key in keys]
  return [one for one in given if one[2]][:1]


def every(where: str) -> list[Document]:
  """All documents at an address, read once in a block of `once.shared` unless its files change.

  Callers do not change the list.
  """
  return once.made(
    'documents', lambda: sources.fingerprint(where), lambda: sources.documents(where)
  )


def with_text(where: str) -> tuple[list[Document], int]:
  """(the documents with a text at an address, how many there are with and without); see `every`.

  Says how many are left out when they are read.
  """

  def chosen() -> tuple[list[Document], int]:
    given = every(where)
    found = [doc for doc in given if doc.title.strip() or doc.summary.strip()]
    if empty := len(given) - len(found):
      left = part_of(empty, len(given), 'document', 'documents', 'has', 'have')
      say(f'documents: {left} no text and {"is" if empty == 1 else "are"} left out')
    return found, len(given)

  return once.made('documents with a text', lambda: sources.fingerprint(where), chosen)


def read(config, least: int = LEAST) -> list[Document]:
  """All documents with a text, in order. Raises: UserError for fewer than `least`."""
  found, count = with_text(address(config))
  if len(found) < least:
    [(key, _, where)] = addresses(config)
    raise UserError(
      f'config.{key}={where!r}: has {amount(len(found), "document")} with a text (of {count:,}); '
      f'it takes {least} or more'
    )
  return found


def chosen(config, docs: list[Document]) -> list[Document]:
  """The documents that queries are written from: `generate.documents` of them, by a hash."""
  most = config.generate.documents
  if not most or most >= len(docs):
    return docs
  order = sorted(range(len(docs)), key=lambda i: place(f'{config.seed} {docs[i].doc_id}'))
  return [docs[i] for i in sorted(order[:most])]
