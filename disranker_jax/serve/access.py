"""Who may call: host names, pages of other sites, content types, and the token."""

import dataclasses
import hmac
import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse

from disranker_jax.errors import UserError
from disranker_jax.serve import apis
from disranker_jax.serve.errors import Refused


@dataclasses.dataclass(frozen=True)
class Access:
  """What callers must have."""

  token: str = ''  # a bearer token; '': none
  origins: Collection[str] = ()  # whose pages may call from a browser; '*': any
  hosts: Collection[str] = ()  # under which the server may be addressed; none: any


LOOPBACK = ('localhost', '127.0.0.1', '::1')
UNCHECKED = ('/health',)  # probes of orchestrators name the server by any address


def is_loopback(host: str) -> bool:
  """Whether a server that listens on this address can be reached from this machine only."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def host_name(value: str) -> str:
  """The name in a Host header, in lower case, without port and brackets; '' if it is none."""
  match = re.fullmatch(r'(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d*)?', value.lower())
  return (match[1] or match[2]).rstrip('.') if match else ''


def allowed_hosts(listens_on: str, named: Collection[str]) -> frozenset[str]:
  """The names under which requests may address the server; empty: any.

  A server on a loopback address is called by its loopback names only. Otherwise a web page can make
  its own name resolve to this machine, and read answers as if they were its own (DNS rebinding).

  Raises: UserError if one of `named` is not a host name.
  """
  for name in named:
    if not name or host_name(name) != name.lower().strip('[]'):
      raise UserError(f'--allow-host {name!r}: must be a host name without scheme, port or path')
  if not named and not is_loopback(listens_on):
    return frozenset()
  return frozenset({*LOOPBACK, listens_on.lower(), *map(host_name, named)})


class Hosts:
  """ASGI middleware: answers 400 without exactly one Host header, and 421 for a foreign one."""

  def __init__(self, app, allowed: Collection[str] = ()):
    self._app, self._allowed = app, allowed

  async def __call__(self, scope, receive, send):
    refused = self._check(scope) if scope['type'] == 'http' else None
    app = JSONResponse(apis.tei_error(refused), refused.status) if refused else self._app
    await app(scope, receive, send)

  def _check(self, scope) -> Refused | None:
    hosts = [value for name, value in scope['headers'] if name == b'host']
    if len(hosts) > 1 or (not hosts and scope['http_version'] != '1.0'):
      return Refused(400, 'Validation', 'send exactly one Host header')
    if not self._allowed or scope['path'] in UNCHECKED:
      return None
    name = host_name(hosts[0].decode('latin-1')) if hosts else ''
    if name in self._allowed:
      return None
    return Refused(421, 'Validation', f'this server is not called {name!r}; see --allow-host')


def check_page(request: Request, origins: Collection[str]) -> None:
  """Refuses what a page of another site sends from a browser, unless it is of `origins` ('*': any).

  Without this, such a page can make the server work, though it cannot read the answer. The rule is
  that of Go's net/http.CrossOriginProtection: `Sec-Fetch-Site` decides where the browser sends it,
  else `Origin` is compared with `Host`. Clients that are no browsers send neither.

  Raises: Refused.
  """
  headers = request.headers
  origin, site = headers.get('origin'), headers.get('sec-fetch-site')
  if '*' in origins or origin in origins:
    return
  if site:
    same = site in ('same-origin', 'none')
  else:
    same = origin is None or origin.partition('://')[2].lower() == headers.get('host', '').lower()
  if not same:
    raise Refused(403, 'Validation', 'pages of other sites may not call; see --cors-allow-origin')


def check_type(headers: Headers) -> None:
  """Raises: Refused if the body is declared to be anything but JSON."""
  kind = headers.get('content-type', '').partition(';')[0].strip().lower()
  if kind and kind != 'application/json' and not re.fullmatch(r'application/[\w.-]+\+json', kind):
    raise Refused(415, 'Validation', f'content-type {kind!r}: send application/json')


def read_token(environment: dict[str, str], name: str | None, default: str) -> str:
  """The token in the variable `name`, or in `default` if no name was given; '' if there is none.

  Raises: UserError if a named variable is not set, or if a token is empty or cannot be sent.
  """
  value = environment.get(name or default)
  if value is None:
    if name:
      raise UserError(f'--token-env {name}: this environment variable is not set')
    return ''
  token, where = value.strip(), f'the environment variable {name or default}'
  if not token:
    raise UserError(f'{where} is empty; set it to a token, or unset it and leave out --token-env')
  if not re.fullmatch('[!-~]+', token):
    raise UserError(f'{where} must have printable ASCII characters without blanks only')
  return token


def check_token(request: Request, token: str) -> None:
  """Raises: Refused if the server has a token and the request does not carry it."""
  if token:
    # Starlette decodes headers as Latin-1, whatever the client's encoding was.
    header = request.headers.get('authorization', '').encode('latin-1')
    scheme, _, sent = header.partition(b' ')
    if scheme.lower() != b'bearer' or not hmac.compare_digest(sent.lstrip(b' '), token.encode()):
      raise Refused(401, 'Validation', 'a bearer token is needed: Authorization: Bearer ...')
