"""The decoder that writes queries: its prompt, and batches of documents on all devices."""

import dataclasses
import functools
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from disranker_jax.data import query_prompt, sources
from disranker_jax.data.records import Click, Document
from disranker_jax.devices import memory, processes
from disranker_jax.errors import UserError
from disranker_jax.models.generate import Shared, common, generate, share
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.models.writing import Texts
from disranker_jax.progress import amount, say
from disranker_jax.stages import roles
from disranker_jax.training import remedies

MIN_NEW = 2  # many models begin with an empty line
MIN_SHARED = 32  # shared tokens below which all prompts are read whole
PLACEHOLDER = 'x'  # the query whose place in the prompt is looked for
Written = list[tuple[str, bool]]  # the texts from one document, and whether the model ended each


def open_writer(config) -> TextModel:
  """The teacher's model, or that of `generate.model`, with the prompt for writing; no parameters.

  Raises: UserError that names the key of the config.
  """
  c, settings = config.generate, settings_of(config)
  settings.template = query_prompt.few_shot(settings.template, examples(config))
  try:
    model = open_model(settings, 'lm')
    model.prompt()
  except UserError as e:
    raise UserError(named(c, settings.model, str(e))) from e
  longest = model.network.family.max_len(model.network.config)
  if c.max_len + c.max_new > longest:
    raise UserError(
      f'config.generate.max_len={c.max_len}: with max_new={c.max_new} more than {longest} tokens, '
      f'which is all that {settings.model!r} reads'
    )
  return model


def settings_of(config):
  """The settings of the writer, without the examples of its prompt: the teacher's and its own."""
  settings = config.teacher.copy_and_resolve_references()
  settings.update(own_settings(config))
  return settings


def own_settings(config) -> dict[str, object]:
  """The settings of the writer that are not the teacher's, by their names in its section.

  What the writer does not read of these has a fixed value, so that all others decide the texts.
  """
  c = config.generate
  own = {
    'scorer': 'query_likelihood', 'ready': False, 'input': 'template', 'template': c.template,
    'max_len': c.max_len, 'max_query_len': 1, 'row_len': c.max_len, 'pooling': '',
    'zero_shot_template': '',
  }  # fmt: skip
  if c.model:
    own |= {'model': c.model, 'layers': (), 'init_from': '', 'bidirectional': False}
  if c.model or not (config.teacher.init_from or trained_by(config)):
    own |= {'seed': 0, 'lora_rank': 0, 'lora_alpha': 1.0}  # adapters add 0 before their training
  return own


def read_keys(config) -> tuple[str, ...]:
  """The keys of the config from which the texts follow, beside those of `generate`."""
  own = own_settings(config)
  return ('seed', *(f'teacher.{name}' for name in config.teacher if name not in own))


def texts_of(config) -> tuple[object, Texts]:
  """(the writer's settings, its largest batch)."""
  c = config.generate
  return settings_of(config), Texts(c.batch_rows, c.samples, c.max_len, c.max_new)


def named(c, model: str, text: str) -> str:
  """An error of opening the writer, with the key of the config that it is about."""
  if text.startswith('max_len='):
    return f'config.generate.{text}'
  key = 'generate.model' if c.model else 'teacher.model'
  if text.startswith("head 'lm'"):
    text = f'writes no text ({text}); name a decoder in config.generate.model'
  return f'config.{key}={model!r}: {text}'


def examples(config) -> Sequence[Click]:
  """The examples of the prompt. Raises: UserError if there are none at their address."""
  c = config.generate
  if not c.examples or not c.shots:
    return query_prompt.EXAMPLES[: c.shots]
  return _examples(c.examples, c.shots)


@functools.lru_cache(maxsize=4)
def _examples(address: str, shots: int) -> tuple[Click, ...]:
  found = tuple(itertools.islice(sources.read(address, 'clicks'), shots))
  if len(found) < shots:
    raise UserError(
      f'config.generate.examples={address!r}: has {amount(len(found), "example")}; lower '
      f'config.generate.shots={shots}'
    )
  return found


def variables(run, model: TextModel) -> dict:
  """The writer's parameters: those of cpt if it learned to write queries, else pretrained ones."""
  return roles.trained(run, 'teacher', model, trained_by(run.config), trains='')


def trained_by(config) -> tuple[str, ...]:
  """The stages whose parameters the writer has."""
  learned = 'cpt' in config.stages and config.cpt.predict == 'query' and not config.generate.model
  return ('cpt',) if learned else ()


def prompts(model: TextModel, docs: Sequence[Document]) -> list[list[int]]:
  """The token ids before the query's place, for each document."""
  encoded = model.prompt().encode_many([(PLACEHOLDER, [doc]) for doc in docs])
  return [one.ids[: one.predict[0]].tolist() for [one] in encoded]


def beginning(prompts: Sequence[list[int]]) -> list[int]:
  """The tokens that all prompts begin with, if they are enough to be read once for all."""
  ids = common(prompts)
  # What follows attends to the beginning without the kernels for long texts.
  return ids if len(ids) >= max(MIN_SHARED, max(map(len, prompts)) / 2) else []


def ends(model: TextModel) -> frozenset[int]:
  """The tokens that end a query: the model's own end tokens, and all with a line break."""
  decode = model.tokenizer.backend_tokenizer.decode
  return model.end_ids | {i for i in range(len(model.tokenizer)) if '\n' in decode([i])}


@dataclasses.dataclass
class QueryWriter:
  """Writes `samples` texts from each document, in batches of `rows` documents.

  All processes compute every batch together. A text depends on the seed, the document's id and its
  prompt; batches are always full and of one shape, so it does not depend on a restart.
  """

  model: TextModel
  variables: dict
  mesh: jax.sharding.Mesh
  c: object  # config.generate
  seed: int
  watchdog_s: float = 0.0
  tokens: int = 0
  seconds: float = 0.0

  def __call__(
    self, docs: Sequence[Document], units: Iterable[range]
  ) -> Iterator[tuple[range, Document, Written]]:
    """(unit, document, its texts) for the documents of each unit, in order.

    Raises: Stopped after SIGTERM or Ctrl-C, UserError without enough device memory.
    """
    every = prompts(self.model, docs)
    longest, stops = max(map(len, every)), ends(self.model)
    ids = beginning(every)  # of all documents, so that it does not depend on a restart
    shared = f', share the first {len(ids)} and read them once' if ids else ''
    say(f'generate: prompts have up to {longest} tokens{shared}')
    dtype = self.model.settings.param_dtype
    lower = remedies.as_sentence(
      [*remedies.in_bf16('teacher', dtype), *remedies.spread(self.mesh)],
      f'lower config.generate.batch_rows (now {self.c.batch_rows}), samples or max_len',
    )
    needs = {'parameters': memory.per_device(self.variables)}
    with (
      memory.limited('writing queries', lambda: needs, lower),
      processes.StopRequest() as request,
      processes.Watchdog('writing queries', self.watchdog_s) as watchdog,
    ):
      with jax.set_mesh(self.mesh):
        shared = share(self.model.network, self.variables, ids)
      for unit in units:
        if processes.any_of(bool(request)):
          raise request.stopped('generate: stopped')
        texts = self._write(
          [every[i] for i in unit], [docs[i] for i in unit], longest, stops, shared
        )
        watchdog.beat()
        for i, written in zip(unit, texts, strict=True):
          yield unit, docs[i], written

  def _write(self, ids, docs, longest: int, stops: frozenset[int], shared: Shared) -> list[Written]:
    c, begun = self.c, time.monotonic()
    filling = c.batch_rows - len(ids)
    with jax.set_mesh(self.mesh):
      rows = generate(
        self.model.network, self.variables, ids + ids[:1] * filling, max_new=c.max_new,
        eos_id=stops, temperature=c.temperature, top_p=c.top_p, samples=c.samples, seed=self.seed,
        at_least=longest, min_new=MIN_NEW, numbers=[*map(number, docs), *[0] * filling],
        shared=shared,
      )  # fmt: skip
    rows = rows[: len(ids) * c.samples]
    self.seconds += time.monotonic() - begun
    self.tokens += sum(map(len, rows))
    decoded = self.model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    ended = [row[-1] in stops for row in rows]
    pairs = list(zip(decoded, ended, strict=True))
    return [pairs[i : i + c.samples] for i in range(0, len(pairs), c.samples)]


def number(doc: Document) -> int:
  """A document's number for `generate`: its draws do not depend on its place."""
  digest = hashlib.sha256(doc.doc_id.encode('utf-8', 'surrogatepass')).digest()
  return int(np.frombuffer(digest[:4], '<u4')[0])
