"""Finds the documented objects of Python and of packages, for the built-in collection.

Source files are parsed, not imported, so no code runs. Modules written in C have no source; those
whose import has no side effects are imported.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import pathlib
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator

from disranker_jax.errors import UserError

LIBRARY = 'python'  # the name of the standard library among packages

# Folders and modules that are not library documentation, or have side effects when imported.
SKIPPED = frozenset({
  '__main__', 'antigravity', 'ensurepip', 'idlelib', 'lib2to3', 'pydoc_data', 'test', 'tests',
  'this', 'turtledemo',
})  # fmt: skip

# Modules written in C that are safe to import; not those that change the terminal (readline), open
# windows (_tkinter) or warn when imported (audioop).
C_MODULES = (
  'builtins', 'sys', 'math', 'cmath', 'time', 'itertools', 'errno', 'array', 'zlib', 'binascii',
  'select', 'mmap', 'fcntl', 'resource', 'pwd', 'grp', 'syslog', 'termios', 'unicodedata', 'gc',
  'marshal', 'atexit', 'faulthandler', 'pyexpat', 'posix', '_abc', '_asyncio', '_bisect', '_bz2',
  '_codecs', '_collections', '_contextvars', '_csv', '_ctypes', '_datetime', '_decimal',
  '_elementtree', '_functools', '_hashlib', '_heapq', '_io', '_json', '_locale', '_lzma',
  '_operator', '_pickle', '_queue', '_random', '_signal', '_socket', '_sqlite3', '_sre', '_ssl',
  '_stat', '_statistics', '_string', '_struct', '_symtable', '_thread', '_tracemalloc', '_uuid',
  '_warnings', '_weakref', '_zoneinfo',
)  # fmt: skip
# Public names that are not just the name without the leading underscore.
PUBLIC = {
  '_elementtree': 'xml.etree.ElementTree',
  '_sre': 're',
  '_thread': 'threading',
  'posix': 'os',
}
# Private modules and their public names; the modules differ between Python versions.
BEHIND = {
  '_collections_abc': 'collections.abc',
  '_pydatetime': 'datetime',
  '_pydecimal': 'decimal',
  '_pyio': 'io',
  'pathlib._local': 'pathlib',
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """A documented object: its dotted name, module, owner (class), signature and docstring."""

  name: str
  module: str
  owner: str
  signature: str
  doc: str


def find(packages: tuple[str, ...] = (LIBRARY,)) -> list[Entry]:
  """All documented public objects of packages, sorted by name; names are unique.

  Does not depend on the current directory, other installed packages, or the hash seed. Raises:
  UserError for a package that is not installed.
  """
  entries: dict[str, Entry] = {}
  # All folders are resolved before the first file is read, so that errors come early.
  of_each = [_library() if p == LIBRARY else _of_folder(_package_folder(p), p) for p in packages]
  for entry in itertools.chain(*of_each):
    entries.setdefault(entry.name, entry)
  return _without_twins([entries[name] for name in sorted(entries)])


def _library() -> Iterator[Entry]:
  yield from _of_folder(pathlib.Path(sysconfig.get_paths()['stdlib']), '')
  seen: set[int] = set()
  for name in C_MODULES:
    yield from _imported(name, PUBLIC.get(name, name.lstrip('_')), seen)


def _of_folder(folder: pathlib.Path, prefix: str) -> Iterator[Entry]:
  for module, path in _sources(folder, prefix):
    yield from _parsed(module, path)


def _without_twins(entries: list[Entry]) -> list[Entry]:
  """Removes duplicates within a package, such as asyncio.Task (C) and asyncio.tasks.Task."""
  unique: dict[tuple[str, ...], Entry] = {}
  for entry in entries:
    parts = entry.name.split('.')
    own = parts[-2:] if entry.owner and entry.owner != entry.name else parts[-1:]
    unique.setdefault((parts[0], *own, entry.doc), entry)
  return list(unique.values())


def _package_folder(package: str) -> pathlib.Path:
  # Only top-level names, because find_spec of a submodule imports its parents.
  spec = importlib.util.find_spec(package) if package.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise UserError(
      f'python_docs: {package}: is not installed as a package; '
      f'install {package} or remove it from the list'
    )
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _sources(folder: pathlib.Path, prefix: str) -> Iterator[tuple[str, pathlib.Path]]:
  """(dotted module name, path) of the Python files in a folder and its packages."""
  for path in sorted(folder.iterdir()):
    stem = path.name.removesuffix('.py')
    # In the library's own folder, skip files that are not part of Python.
    if stem in SKIPPED or not (prefix or stem in sys.stdlib_module_names):
      continue
    module = prefix if stem == '__init__' else f'{prefix}.{stem}'.strip('.')
    if not (stem == '__init__' or _public(stem) or module in BEHIND) or not stem.isidentifier():
      continue
    if path.suffix == '.py':
      yield BEHIND.get(module, module), path
    elif (path / '__init__.py').is_file():
      yield from _sources(path, module)


def _parsed(module: str, path: pathlib.Path) -> Iterator[Entry]:
  with warnings.catch_warnings():
    # Hide warnings about invalid escapes in sources that are not the user's.
    warnings.simplefilter('ignore')
    try:
      tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, or syntax of another Python version
      return
  if doc := _clean(ast.get_docstring(tree), ''):
    yield Entry(module, module, '', '', doc)
  yield from _members(tree, module, module, '')


def _members(node: ast.AST, prefix: str, module: str, owner: str) -> Iterator[Entry]:
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
      yield from _members(child, prefix, module, owner)
    elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      if not _public(child.name):
        continue
      name = f'{prefix}.{child.name}'
      is_class = isinstance(child, ast.ClassDef)
      child_owner = name if is_class else owner
      signature = _class_line(child) if is_class else f'{child.name}({ast.unparse(child.args)})'
      if doc := _clean(ast.get_docstring(child), child.name):
        yield Entry(name, module, child_owner, signature, doc)
      if is_class:
        yield from _members(child, name, module, name)


def _class_line(node: ast.ClassDef) -> str:
  bases = ', '.join(ast.unparse(base) for base in node.bases)
  return f'class {node.name}({bases})' if bases else f'class {node.name}'


def _imported(name: str, public: str, seen: set[int]) -> Iterator[Entry]:
  try:
    module = importlib.import_module(name)
  except ImportError:  # not part of this Python or operating system
    return
  if name == public and (doc := _clean(module.__doc__, '')):
    yield Entry(public, public, '', '', doc)
  homes = (name, public, public.rpartition('.')[2])
  # Objects under their own name come first, so that aliases are the duplicates.
  members = sorted(
    vars(module).items(), key=lambda item: (getattr(item[1], '__name__', '') != item[0], item[0])
  )
  for key, value in members:
    if module is sys and key.endswith('hook'):  # test runners and debuggers replace these
      continue
    # Modules re-export classes; a class is described in the module that defines it.
    if not isinstance(value, type) or value.__module__ in homes:
      yield from _described(f'{public}.{key}', key, value, public, '', seen)


def _described(
  name: str, key: str, value: object, module: str, owner: str, seen: set[int]
) -> Iterator[Entry]:
  """A class, function or method of a C module and its members; skips objects in `seen`."""
  value = getattr(value, '__func__', value)
  is_class = isinstance(value, type)
  callables = types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType
  data = types.GetSetDescriptorType, types.MemberDescriptorType
  if not _public(key) or id(value) in seen or not (is_class or isinstance(value, callables + data)):
    return
  seen.add(id(value))
  child_owner = name if is_class else owner
  if doc := _clean(value.__doc__, key):
    yield Entry(name, module, child_owner, _signature(key, value, is_class), doc)
  if is_class:
    for child_key, child in sorted(vars(value).items()):
      yield from _described(f'{name}.{child_key}', child_key, child, module, name, seen)


def _signature(key: str, value: object, is_class: bool) -> str:
  text = getattr(value, '__text_signature__', None) or ''
  if not text and (call := _call(key).match((value.__doc__ or '').strip())):
    text = call[1]  # older C code has the signature in the first line of the docstring
  text = re.sub(r'\$(?:self|module|type|cls)(?:, /)?(?:, )?', '', text)
  text = text.replace('<unrepresentable>', '...')
  return f'class {key}{text}' if is_class else f'{key}{text}'


def _clean(doc: str | None, key: str) -> str:
  """The docstring without indentation and without a first line that is only the signature."""
  if not isinstance(doc, str):
    return ''
  doc = inspect.cleandoc(doc)
  line, _, rest = doc.partition('\n')
  if key and (call := _call(key).match(line)):
    # The text follows `len(x) -> int`, or is in that line: `D.keys() -> a view of D's keys`.
    doc = rest if rest.strip() else re.split(r'-[->] ', line[call.end() :])[-1]
  return doc.strip()


def _call(key: str) -> re.Pattern[str]:
  return re.compile(rf'(?:\w+\.)?{re.escape(key)}(\([^\n]*?\))(?=\s|$|:)')


def _public(name: str) -> bool:
  return not name.startswith('_')
