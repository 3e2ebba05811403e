"""Whether what an address names is there: a misspelt name is found before anything is read."""

from pathlib import Path

from disranker_jax.data import lines, sources, store

DOCUMENTS = 'documents'  # beside sources.ALL_KINDS


def check(address: str, kind: str) -> None:
  """Looks for the files that a kind of records, or DOCUMENTS, needs; reads none of them.

  Raises: UserError, as reading says it, if one is missing or empty.
  """
  scheme, rest = sources.split(address, kind)
  place = Path(rest.partition('?')[0]).expanduser()
  if source := sources.row_files(address):
    lines.check(source.files, source.read)
  elif scheme == 'trec' and kind == sources.SCORES and rest and not place.is_dir():
    lines.check([place])
  elif tables := sources.open_collection(address):
    tables.check(kind)
  elif scheme == 'tfds' and not store.kind_of(place):
    # TFDS tells whether it has a dataset by opening it, which tfds_rows.read does before any row.
    sources.read(address, kind if kind in sources.ALL_KINDS else 'candidates')
