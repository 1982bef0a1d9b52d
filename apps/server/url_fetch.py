"""Fetches images by URL, without giving requests access to the server's own network (SSRF).

A host name is resolved once, all its addresses are checked, and the connection goes to a checked address, so
that a second look-up can't lead elsewhere (DNS rebinding). Redirects are followed here with the same checks.
"""

import asyncio
import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable
from typing import Any

import httpcore

from ...blocks.errors import PictureError

MAX_REDIRECTS = 3
SECONDS = 15.0
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The only IPv6 addresses that are assigned to hosts of the internet (RFC 4291, IANA's registry)."""
# IANA's special-purpose registries as far as Python's tables, which depend on its version, lack them or call
# them global: 192.88.99.0/24 is 6to4's relays (RFC 7526), 192.31.196.0/24 and 192.175.48.0/24 swallow queries
# (AS112, RFC 7534 and 7535), 192.52.193.0/24 is multicast tunnels (RFC 7450). 2001::/23 is for protocols
# (RFC 2928), with Teredo, which like 6to4 in 2002::/16 embeds an IPv4 address; 3fff::/20 is for documentation
# (RFC 9637).
_SPECIAL = [
    ipaddress.ip_network(net)
    for net in (
        *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
]


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not private, loopback, link-local, multicast, reserved
    or unspecified, nor for a special purpose, such as embedding an IPv4 address (except a mapped public one).
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # not an address, or one with a scope (fe80::1%eth0)
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _GLOBAL_UNICAST:
            return False
    if any(ip in net for net in _SPECIAL):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host name. Raises `PictureError` if there is none or any is not public."""
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PictureError(f"the address of {host!r} can't be found") from error
    addresses = [str(entry[4][0]) for entry in infos]
    if not addresses or not all(is_public(address) for address in addresses):
        raise PictureError(f"{host!r} is not an address of the public internet, and is not fetched")
    return addresses


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only; TLS still verifies the host name."""

    def __init__(self) -> None:
        # Typed as Any: type checkers see the class without methods that httpcore has if anyio is missing.
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await resolve(host, port)
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise PictureError("a Unix socket is not the address of a picture")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def check_url(url: str) -> str:
    """The URL, if it may be fetched: http or https, a host, port 80 or 443, no credentials.

    Raises `PictureError` otherwise.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PictureError(f"the picture's address is malformed: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise PictureError("the picture's address is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise PictureError("the picture's address holds credentials, which are not sent")
    if port not in (None, *_PORTS.values()):
        raise PictureError(f"the picture's address has port {port}; accepted: 80 and 443")
    if not url.isascii() or any(c.isspace() for c in url):
        raise PictureError("the picture's address has characters that a URL must escape")
    return url


async def fetch(url: str, max_bytes: int, backend: httpcore.AsyncNetworkBackend | None = None) -> bytes:
    """The content at a URL, at most `max_bytes`, within `SECONDS`. Raises `PictureError`."""
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    try:
        async with (
            asyncio.timeout(SECONDS),
            httpcore.AsyncConnectionPool(network_backend=backend or GuardedBackend()) as pool,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                target = check_url(url)
                headers = [
                    ("Host", urllib.parse.urlsplit(target).netloc),
                    ("Accept", "image/*"),
                    ("Accept-Encoding", "identity"),
                    ("User-Agent", "bifrons"),
                ]
                async with pool.stream(
                    "GET", target, headers=headers, extensions={"timeout": timeouts}
                ) as reply:
                    if reply.status not in _REDIRECTS:
                        return await _read(reply, max_bytes)
                    location = {name.lower(): value for name, value in reply.headers}.get(b"location")
                    if location is None:
                        raise PictureError("the picture's address redirects to nowhere")
                    url = urllib.parse.urljoin(target, location.decode("latin-1"))
    except TimeoutError as error:
        raise PictureError(f"the picture did not arrive within {SECONDS:.0f} seconds") from error
    except (OSError, ValueError, httpcore.NetworkError, httpcore.ProtocolError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError("the picture's address did not answer") from error
    except httpcore.TimeoutException as error:
        raise PictureError(f"the picture did not arrive within {SECONDS:.0f} seconds") from error
    raise PictureError(f"the picture's address redirects more than {MAX_REDIRECTS} times")


async def _read(reply: httpcore.Response, max_bytes: int) -> bytes:
    if reply.status != 200:
        raise PictureError(f"the picture's address answered with status {reply.status}")
    body = bytearray()
    async for piece in reply.aiter_stream():
        body += piece
        if len(body) > max_bytes:
            raise PictureError(f"the picture at that address has more than {max_bytes:,} bytes")
    return bytes(body)
