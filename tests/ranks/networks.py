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


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_places():
    """Two namespaces that reach each other by a cable and nothing else, not even this machine; both are gone after the
    block. Both on loopback where this process may not make namespaces."""
    mark = f"course{os.getpid()}"
    names, cables = [f"{mark}{end}" for end in "ab"], [f"c{os.getpid()}{end}" for end in "ab"]
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip(
                "link",
                "add",
                cables[0],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                cables[1],
                "netns",
                names[1],
            )
            for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
                _ip("-n", name, "address", "add", f"10.213.77.{number}/24", "dev", cable)
                _ip("-n", name, "link", "set", cable, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            yield Place(), Place()
            return
        yield tuple(
            Place(f"10.213.77.{number}", ("ip", "netns", "exec", name), (("GLOO_SOCKET_IFNAME", cable),))
            for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1)
        )
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)
