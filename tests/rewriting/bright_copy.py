"""A made-up copy of BRIGHT with one task."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = [
  {'query': 'why do moths fly to light', 'reasoning': 'r', 'id': '0', 'gold_answer': 'a',
   'excluded_ids': ['N/A'], 'gold_ids': ['moths/a.txt', 'moths/b c.txt'],
   'gold_ids_long': ['moths']},
  {'query': 'light bulb', 'reasoning': 'r', 'id': '1', 'gold_answer': 'a',
   'excluded_ids': ['bulb/1.txt', 'bulb/2.txt'], 'gold_ids': ['bulb/3.txt'],
   'gold_ids_long': ['N/A']},
]  # fmt: skip
DOCUMENTS = [
  {'id': 'moths/a.txt', 'content': 'insects steer by the moon'},
  {'id': 'moths/b c.txt', 'content': 'moths and light'},
  *({'id': f'bulb/{i}.txt', 'content': f'light bulb {"word " * i}'} for i in range(1, 6)),
]


def write_table(file: pathlib.Path, rows: list[dict]) -> None:
  file.parent.mkdir(exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), file)


def make(folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of the task biology; returns the folder."""

  def write(table: str, name: str, rows: list[dict]) -> None:
    write_table(folder / table / name, rows)

  write('examples', 'biology-00000-of-00001.parquet', EXAMPLES)
  write('documents', 'biology-00000-of-00001.parquet', DOCUMENTS[:4])
  write('documents', 'biology-00001-of-00001.parquet', DOCUMENTS[4:])
  write('long_documents', 'biology-00000-of-00001.parquet', [{'id': 'moths', 'content': 'moths'}])
  rewritten = [row | {'query': f'rewritten {row["id"]}'} for row in EXAMPLES]
  write('gpt4_reason', 'biology-00000-of-00001.parquet', rewritten)
  write('examples', 'biology_of_others.parquet', [EXAMPLES[0] | {'query': 'another task'}])
  return folder
