"""The address that a server is bound to, and the host names by which it may be addressed.

A web page can make its own name resolve to an address in the visitor's network, such as 127.0.0.1, and then
talk to a server there as if it were its own (DNS rebinding). The `Host` header still bears the page's name.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from ..blocks.errors import OptionError, ResourceError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Accepted always: no other machine's page has these names."""

Refusal = Callable[[str], ASGIApp]


def accepted_hosts(bound: str, allowed: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The accepted hosts, without ports, of a server that is bound to an address; None accepts all.

    `allowed` are names, addresses, `*.example.com` for all names below one, or `*` for all hosts. Without
    any, a server on the loopback interface accepts that interface's names only, and another one all hosts.
    Raises `OptionError` for anything else, such as a URL.
    """
    if "*" in allowed or not (allowed or is_loopback(bound)):
        return None
    for host in allowed:
        name = host.removeprefix("*.")
        if not name or host_name(name) != name.lower() or set(name) & set("*/@? "):
            raise OptionError(
                f"allowed-host is {host!r}; accepted: a name or an address without a port, "
                "*.example.com for all names below it, or * for all"
            )
    own = f"[{bound}]" if ":" in bound else bound
    return tuple(dict.fromkeys(host.lower() for host in (*LOOPBACK, own, *allowed)))


def is_loopback(bound: str) -> bool:
    """Whether only this machine reaches a server that is bound to this address or name."""
    try:
        return ipaddress.ip_address(bound).is_loopback
    except ValueError:
        return bound.lower() == "localhost"


def host_name(header: str) -> str:
    """The host of a `Host` header, without its port; an IPv6 address keeps its brackets."""
    end = header.find("]") + 1 if header.startswith("[") else header.find(":")
    return (header[:end] if end > 0 else header).lower()


def is_accepted(header: str, hosts: Sequence[str]) -> bool:
    """Whether a `Host` header names one of the hosts."""
    name = host_name(header)
    return any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which refuses connections until it listens. Raises `ResourceError` where
    the port is taken."""
    # asyncio sets TCP_NODELAY only if the protocol is given; without it each answer is 40 ms late.
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        problem = f"can't listen on {host} port {port}: {error}"
        raise ResourceError(f"{problem}; accepted: a free --port") from error
    return listener


class AllowedHosts:
    """ASGI middleware that answers requests to other hosts with `refuse(message)`."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], refuse: Refusal) -> None:
        self.app, self.hosts, self.refuse = app, hosts, refuse

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] not in ("http", "websocket"):
            return self.app(scope, receive, send)
        header = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if is_accepted(header, self.hosts):
            return self.app(scope, receive, send)
        message = (
            f"the host {host_name(header)[:100]!r} is not one of this server's; accepted: "
            f"{', '.join(self.hosts)}; start it with --allowed-host to add one"
        )
        return self.refuse(message)(scope, receive, send)
