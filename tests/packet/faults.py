# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes one request to the kernel fail; all others are real. And what ip and tc say, who know nothing of the engine."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyroute2
import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.kernel import bpf, link, netlink, tc


@dataclass(frozen=True)
class Fault:
    """`happens`: the kernel does what was asked for, only its answer is lost. `number` None: somebody ends the run."""

    number: int | None
    happens: bool = False

    def __str__(self) -> str:
        name = errno.errorcode[self.number] if self.number else "interrupt"
        return f"{name}, done" if self.happens else name


class Requests:
    """Counts requests that change a hook, an MTU or a map's place, and those that look; the n-th one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left, self._fault, self.names = 0, Fault(None), list[str]()
        real_socket, real_bpf, real_request = link.route_socket, bpf._bpf, netlink.Socket.request

        @contextmanager
        def route_socket() -> Iterator[Any]:
            with real_socket() as route:
                yield _Route(route, self)

        for module in (link, tc):
            monkeypatch.setattr(module, "route_socket", route_socket)
        monkeypatch.setattr(bpf, "_bpf", lambda *args: self.made(f"bpf {args[0]}", OSError, partial(real_bpf, *args)))
        monkeypatch.setattr(
            netlink.Socket,
            "request",
            lambda *args: self.made(f"netlink {args[1]}", netlink.NetlinkError, partial(real_request, *args)),
        )

    def fail(self, place: int, fault: Fault) -> None:
        """From now on, the request at this place (1 is the first) is the one that fails; 0: none."""
        self._left, self._fault = place, fault
        self.names.clear()

    def made(self, name: str, error: Callable[..., Exception], real: Callable[[], Any]) -> Any:
        self.names.append(name)
        self._left -= 1
        if self._left:
            return real()
        number = self._fault.number
        if self._fault.happens:
            result = real()
            if name.startswith("bpf") and result > 2:
                os.close(result)
            error = OSError
        if number is None:
            raise KeyboardInterrupt
        raise error(number, os.strerror(number))


class _Route:
    def __init__(self, route: Any, requests: Requests) -> None:
        self._route, self._requests = route, requests

    def link(self, *args: Any, **kwargs: Any) -> Any:
        return self._requests.made("link set", pyroute2.NetlinkError, partial(self._route.link, *args, **kwargs))

    def tc(self, *args: Any, **kwargs: Any) -> Any:
        return self._requests.made(f"tc {args[0]}", pyroute2.NetlinkError, partial(self._route.tc, *args, **kwargs))


def _json(*command: str) -> list[dict[str, Any]]:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout or "[]")


# What ip calls the modes of XDP: XDP_ATTACHED_DRV and XDP_ATTACHED_SKB.
IP_MODES = {1: "native", 2: "generic"}


def on_hooks(interface: str) -> dict[str, int]:
    """The program on each hook, by its kernel id; of tc's, that of the balancer's filter."""
    found = {}
    xdp = _json("ip", "-j", "-d", "link", "show", "dev", interface)[0].get("xdp", {})
    if xdp:
        found[IP_MODES[xdp["mode"]]] = xdp["prog"]["id"]
    for entry in _json("tc", "-j", "filter", "show", "dev", interface, "ingress"):
        options = entry.get("options", {})
        if options.get("bpf_name") == "lbops_balancer":
            found["tc"] = options["prog"]["id"]
    return found


def has_clsact(interface: str) -> bool:
    return any(entry["kind"] == "clsact" for entry in _json("tc", "-j", "qdisc", "show", "dev", interface))
