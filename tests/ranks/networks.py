"""Two machines' networks on this one: a namespace each, joined by a cable, where the system lets us make them."""

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where a machine stands. before: what starts its command there. variables: what its ranks find the network by."""

    address: str = LOOPBACK
    before: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


ON_LOOPBACK = (Place(), Place())


@contextlib.contextmanager
def two_places():
    """Two namespaces that reach each other by a cable and nothing else, not even this machine; both are gone after the
    block. Both on loopback where this process may not make namespaces."""
    names, cables = ([f"{kind}{os.getpid()}{end}" for end in "ab"] for kind in ("course", "c"))
    try:
        places = _joined(names, cables)
    except (OSError, subprocess.CalledProcessError):
        places = ON_LOOPBACK
    try:
        yield places
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _joined(names, cables):
    """Make the namespaces, each with its end of the cable. Raises what `_ip` raises."""
    for name in names:
        _ip("netns", "add", name)
    ends = [("name", cable, "netns", name) for name, cable in zip(names, cables, strict=True)]
    _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    places = []
    for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
        address = f"10.213.77.{number}"
        _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
        for interface in (cable, "lo"):
            _ip("-n", name, "link", "set", interface, "up")
        places.append(Place(address, ("ip", "netns", "exec", name), (("GLOO_SOCKET_IFNAME", cable),)))
    return tuple(places)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
