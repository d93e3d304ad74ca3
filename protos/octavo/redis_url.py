"""Where a Redis server is, and how to get in: one URL, checked in full before anything dials.

    redis://[user:password@]host[:6379][/database]
    rediss://...                                     the same over TLS
    unix://[user:password@]/path/to/socket[?db=0]
    sentinel://[user:password@]host[:26379],host[:26379]/service[/database]
    sentinels://...                                  the same, sentinels and servers over TLS

Options stand after a question mark: `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` name PEM files, `ssl_cert_reqs` is
`required` or `none`, `ssl_check_hostname` is `true` or `false`; `sentinel_username` and `sentinel_password` are for the
sentinels themselves. What is not named here is refused: a misspelt option must not silently weaken a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_TLS: Final = {"redis": False, "rediss": True, "unix": False, "sentinel": False, "sentinels": True}
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a server is known over TLS. Files are PEM; None: what the system trusts, and no certificate of ours."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    verifies: bool = True
    checks_hostname: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisPlace:
    """A parsed URL.

    Attributes:
        hosts: host and port of the server, or of its sentinels; empty for a socket.
        socket_path: the Unix socket.
        service: name by which sentinels know the server; None without sentinels.
        database: number of the database.
        username: ACL user; None for the default user.
        password: of that user; never shown.
        sentinel_username: the same for the sentinels.
        sentinel_password: never shown.
        tls: None without TLS.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    socket_path: str | None = None
    service: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Tls | None = None


def parse_redis_url(url: str) -> RedisPlace:
    """Return what a URL says.

    Raises:
        ValueError: it is malformed. The message never holds a part of the URL, which may be a password.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _TLS:
        raise ValueError(f"must start with {', '.join(f'{name}://' for name in _TLS)}")
    # Several hosts with an IPv6 address among them are no URL to newer Pythons: the authority is taken apart here.
    rest = url.removeprefix(f"{scheme}://")
    authority = rest[: min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))]
    try:
        parts = urlsplit(f"//host{rest.removeprefix(authority)}", scheme=scheme)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), max_num_fields=16))
    except ValueError:
        raise ValueError("is not a URL; write special characters of a password as %XX") from None
    if parts.fragment:
        raise ValueError("has a '#'; write special characters of a password as %XX")
    login, _, netloc = authority.rpartition("@")
    if not set("[]").isdisjoint(login):
        raise ValueError("is not a URL; write special characters of a password as %XX")
    username, _, password = login.partition(":")
    place = _place(scheme, parts, netloc, options)
    return RedisPlace(
        hosts=place.hosts,
        socket_path=place.socket_path,
        service=place.service,
        database=place.database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        tls=_tls(options) if _TLS[scheme] else None,
    )


def shown_redis_url(url: str) -> str:
    """Return what of a URL may be shown: where it leads, no user, no password, no certificates.

    Raises:
        ValueError: as `parse_redis_url` does.
    """
    place = parse_redis_url(url)
    scheme = url.partition("://")[0]
    if place.socket_path is not None:
        return f"{scheme}://{place.socket_path}" + (f"?db={place.database}" if place.database else "")
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in place.hosts)
    database = str(place.database) if place.database else None
    return f"{scheme}://{'/'.join(filter(None, [hosts, place.service, database]))}"


def _place(scheme: str, parts: SplitResult, netloc: str, options: Mapping[str, str]) -> RedisPlace:
    allowed = {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"} if _TLS[scheme] else set[str]()
    if scheme == "unix":
        _check_options(options, {"db"})
        if netloc or not unquote(parts.path).strip("/"):
            raise ValueError("must be unix:///path/to/socket")
        return RedisPlace(socket_path=unquote(parts.path), database=_database(options.get("db", "")))
    segments = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if scheme.startswith("sentinel"):
        _check_options(options, allowed.union(_SENTINEL_LOGIN))
        if not 1 <= len(segments) <= 2:
            raise ValueError(f"must name the service after the hosts: {scheme}://host:port,host:port/service")
        hosts = tuple(_host(each, SENTINEL_PORT) for each in netloc.split(","))
        return RedisPlace(hosts=hosts, service=unquote(segments[0]), database=_database("".join(segments[1:])))
    _check_options(options, allowed)
    if len(segments) > 1:
        raise ValueError("must end with the number of a database, such as /0, or with nothing")
    return RedisPlace(hosts=(_host(netloc, REDIS_PORT),), database=_database("".join(segments)))


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a host or port that is none") from None
    if not host or port == 0 or parts.path or "@" in text:
        raise ValueError("has a host or port that is none")
    return unquote(host), default_port if port is None else port


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError("must end with the number of a database, such as /0, or with nothing")
    return int(text or 0)


def _tls(options: Mapping[str, str]) -> Tls:
    ca_file, certificate_file, key_file = (options.get(name) for name in _FILES)
    verifies = _choice(options, "ssl_cert_reqs", {"required": True, "none": False})
    checks_hostname = _choice(options, "ssl_check_hostname", {"true": True, "false": False})
    return Tls(
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
        verifies=verifies,
        checks_hostname=verifies and checks_hostname,
    )


def _choice(options: Mapping[str, str], name: str, values: Mapping[str, bool]) -> bool:
    """Return what an option's value stands for, by default what the first value does."""
    value = options.get(name, next(iter(values)))
    if value not in values:
        raise ValueError(f"{name} must be {' or '.join(values)}")
    return values[value]


def _check_options(options: Mapping[str, str], allowed: set[str]) -> None:
    if not allowed.issuperset(options):
        known = ", ".join(sorted(allowed)) or "none"
        raise ValueError(f"has an option that its scheme does not know; known: {known}")
