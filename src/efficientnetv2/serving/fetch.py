"""Fetch an image by its URL, from public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import httpx2

from efficientnetv2.serving.intake import RequestError
from efficientnetv2.utils.errors import short_repr

# Redirects that are followed, at most. Ours.
_REDIRECTS = 3
# Addresses that a gateway translates to IPv4, also to private ones. Source: RFC 6052, RFC 8215.
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere, and so is not one of this machine or its network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 addresses within IPv6: mapped, 6to4, Teredo.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
        if ip.is_site_local or any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


async def fetch(url: str, count: Callable[[int], object], timeout_s: float) -> bytes:
    """The content of a URL. Raises RequestError, also for an address that is not public.

    ``count`` gets the number of bytes of each part, and raises RequestError for too many.

    The connection goes to the address that was checked, whatever the name resolves to later. Proxies are not used.
    """
    async with httpx2.AsyncClient(trust_env=False, timeout=timeout_s) as client:
        for _ in range(_REDIRECTS + 1):
            target = _parsed(url)
            address = await _resolve(target)
            request = client.build_request(
                "GET",
                target.copy_with(host=address),
                headers={"Host": target.netloc.decode("ascii"), "Accept-Encoding": "identity", "Accept": "image/*"},
                extensions={"sni_hostname": target.host},
            )
            try:
                response = await client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        return await _content(response, url, count)
                    url = str(target.join(response.headers["location"]))
                finally:
                    await response.aclose()
            except httpx2.HTTPError as error:
                raise RequestError(422, f"{short_repr(url)} can't be fetched ({type(error).__name__}).") from error
    raise RequestError(422, f"{short_repr(url)} redirects more than {_REDIRECTS} times. Send the image.")


def _parsed(url: str) -> httpx2.URL:
    try:
        target = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise RequestError(400, f"{short_repr(url)} is not a URL.") from error
    if target.scheme not in ("http", "https") or not target.host or target.userinfo:
        raise RequestError(400, f"{short_repr(url)} must begin with http:// or https://, without a password.")
    return target


async def _resolve(target: httpx2.URL) -> str:
    """An address of the URL's host; all of them must be public."""
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(422, f"the host {short_repr(target.host)} is not found.") from error
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(map(is_public, addresses)):
        raise RequestError(403, f"the host {short_repr(target.host)} has a private address. Send the image.")
    return addresses[0]


async def _content(response: httpx2.Response, url: str, count: Callable[[int], object]) -> bytes:
    if response.status_code != 200:
        raise RequestError(422, f"{short_repr(url)} can't be fetched (status {response.status_code}).")
    content = bytearray()
    async for chunk in response.aiter_raw():
        count(len(chunk))
        content += chunk
    return bytes(content)
