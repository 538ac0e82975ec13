"""Who stands behind a request, as far as its connection tells, and how much each has asked for of late."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

_MOST_KNOWN = 10_000
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{0,5})?")
_RELAYED = (b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"forwarded")
"""What proxies add to a request."""


def visitor(scope: Mapping[str, Any]) -> str:
    """The address of whoever sent a request; empty if that is this machine, or cannot be told.

    What a proxy in front of the page says is believed only from a proxy of this network, and of what it says the last
    public address: what stands before it, anybody could have written.
    """
    peer = _peer(scope)
    if peer is None:
        return ""
    if peer.is_global:
        return _network(peer)  # who is here directly names nobody else
    hops = b",".join(_headers(scope, b"x-forwarded-for"))[-2_000:].decode("latin-1").split(",")
    for hop in reversed(hops):
        found = _address(hop.strip())
        if found is not None and found.is_global:
            return _network(found)
    return "" if peer.is_loopback else str(peer)


def from_others(scope: Mapping[str, Any]) -> bool:
    """Whether a request came through a proxy or over the internet, and so from others than the one at this machine."""
    peer = _peer(scope)
    return (peer is not None and peer.is_global) or bool(_headers(scope, *_RELAYED))


def misnamed(scope: Mapping[str, Any], served_as: str = "") -> bool:
    """Whether a program of this machine asks for another host.

    A browser does for a page of strangers whose name was made to lead here, and which could then use this one (DNS
    rebinding).

    Args:
        served_as: a name of this machine that is none of the usual ones.
    """
    peer = _peer(scope)
    if peer is None or not peer.is_loopback:
        return False
    names = {"localhost", served_as.lower()} - {""}
    for value in _headers(scope, b"host"):
        host = value.decode("latin-1").strip().lower()
        address = _address(host)
        known = address.is_loopback if address is not None else False
        if not known and re.sub(r":[0-9]*$", "", host).rstrip(".") not in names:
            return True
    return False


def _headers(scope: Mapping[str, Any], *names: bytes) -> list[bytes]:
    return [value for name, value in scope.get("headers", ()) if name in names]


def _peer(scope: Mapping[str, Any]) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    return _address(str((scope.get("client") or ("",))[0]))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, which may have a port behind it; one of the older kind in the newer's clothes is of the older."""
    with_port = _WITH_PORT.fullmatch(text)
    try:
        found = ipaddress.ip_address((with_port[1] or with_port[2]) if with_port else text)
    except ValueError:
        return None
    return found if found.version == 4 else found.ipv4_mapped or found


def _network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Whom an address belongs to: of the newer kind, everybody has 2 to the 64."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Allowance:
    """So many of something in a span of time for each visitor; what was taken grows back evenly."""

    def __init__(self, most: float, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._rate, self._clock = most, most / seconds, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, count: float = 1.0) -> float:
        """Take from what a visitor has left; returns for how many seconds it has to wait if there is too little.

        Nobody in particular always has enough.
        """
        if not who:
            return 0.0
        now = self._clock()
        left, then = self._left.get(who, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        missing = min(count, self._most) - left
        if missing <= 0:
            left -= count
        self._left[who] = left, now
        self._left.move_to_end(who)
        while len(self._left) > _MOST_KNOWN:
            self._left.popitem(last=False)
        return max(0.0, missing / self._rate)
