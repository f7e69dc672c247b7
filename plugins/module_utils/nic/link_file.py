# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd.link(5): what udev sets up when a device appears, before anybody uses it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from ..kernel import ethtool_ioctl, files
from ..kernel.device import Device

# Of two files of the same name, the one in the first of these counts.
DIRECTORIES = tuple(Path(root) / "systemd/network" for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))
DIRECTORY = DIRECTORIES[0]
PREFIX = "00-lbops-"
# systemd's own, for all devices that no other file is for.
DEFAULT = "99-default.link"
UDEV = Path("/run/udev/control")
_SOURCE = re.compile(r"^# In place of (/.+)$", re.MULTILINE)
SETTINGS = {
    "channels.combined": "CombinedChannels",
    "channels.rx": "RxChannels",
    "channels.tx": "TxChannels",
    "rings.rx": "RxBufferSize",
    "rings.tx": "TxBufferSize",
    "features.lro": "LargeReceiveOffload",
    "features.gro_hw": "GenericReceiveOffloadHardware",
    "features.rx_checksum": "ReceiveChecksumOffload",
    "features.tx_checksum": "TransmitChecksumOffload",
    "features.rx_vlan_offload": "ReceiveVLANCTAGHardwareAcceleration",
    "features.tx_vlan_offload": "TransmitVLANCTAGHardwareAcceleration",
    "features.rx_vlan_filter": "ReceiveVLANCTAGFilter",
    "features.ntuple": "NTupleFilter",
    "coalesce.adaptive_rx": "UseAdaptiveRxCoalesce",
    "coalesce.adaptive_tx": "UseAdaptiveTxCoalesce",
    "coalesce.rx_usecs": "RxCoalesceSec",
    "coalesce.tx_usecs": "TxCoalesceSec",
    "coalesce.rx_frames": "RxMaxCoalescedFrames",
    "coalesce.tx_frames": "TxMaxCoalescedFrames",
}


def path_of(device: str) -> Path:
    # udev takes the first file that matches, in the order of their names.
    return DIRECTORY / f"{PREFIX}{device}.link"


def section(text: str, name: str) -> list[str]:
    """The settings of one section."""
    found, inside = [], False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and line and line[0] not in "#;":
            found.append(line)
    return found


def settings(values: dict[str, dict[str, Any]]) -> list[str]:
    """What of the groups' arguments such a file can hold."""
    lines = []
    for name, key in SETTINGS.items():
        group, _dot, option = name.partition(".")
        value = values.get(group, {}).get(option)
        if value is None:
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif option.endswith("_usecs"):
            value = f"{value}us"
        lines.append(f"{key}={value}")
    return lines


def render(address: str, driver: str, source: str, earlier: list[str], added: list[str]) -> str:
    """A file for the device with this address. As one file only counts, it says what the one before it says."""
    keys = {line.partition("=")[0] for line in added}
    kept = [line for line in earlier if line.partition("=")[0].strip() not in keys]
    origin = [f"# In place of {source}"] if source else []
    match = [f"PermanentMACAddress={address}", f"Driver={driver}"]
    lines = ["# Made by lbops.xdp.nic_profile", *origin, "[Match]", *match, "", "[Link]"]
    return "\n".join([*lines, *kept, *added]) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _files(names: str) -> list[Path]:
    """Those that count, in the order of their names."""
    found: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for path in directory.glob(names):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def _source(device: str, address: str) -> str:
    """The file that names the device without ours; nothing if none does."""
    ours = _SOURCE.search(_read(path_of(device)))
    if ours is None:
        command = ["udevadm", "info", "--query=property", f"--path=/sys/class/net/{device}"]
        output = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        found = re.search(r"^ID_NET_LINK_FILE=(.+)$", output, re.MULTILINE)
        if found is None or found[1] != str(path_of(device)):
            return found[1] if found else ""
    # udev knows of ours only, if need be of one that is gone; one for this very device may have come since.
    name = Path(ours[1]).name if ours else DEFAULT
    for path in _files("*.link"):
        matches = " ".join(section(_read(path), "Match")).lower().replace("-", ":")
        if not path.name.startswith(PREFIX) and (path.name == name or address in matches):
            return str(path)
    return ours[1] if ours else ""


def desired(device: Device, values: dict[str, dict[str, Any]]) -> str:
    """What the file should say; nothing for devices that udev does not set up, or cannot tell from others."""
    added, address = settings(values), device.link().permanent_address
    if not (added and address and device.driver() and UDEV.exists()):
        return ""
    source = _source(device.name, address)
    # Ours goes on naming the device when the one before it has gone.
    earlier = section((_read(Path(source)) if source else "") or _read(path_of(device.name)), "Link")
    for drop_in in _files(f"{Path(source).name}.d/*.conf") if source else ():
        earlier += section(_read(drop_in), "Link")
    # udev goes by the driver's own name for itself.
    return render(address, ethtool_ioctl.driver_info(device.index).driver, source, earlier, added)


def differs(device: str, text: str) -> bool:
    return _read(path_of(device)) != text


def write(device: str, text: str) -> None:
    """Without a text there is no file."""
    path = path_of(device)
    if text:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # udev reads it as root, people may as anybody.
        files.write(path, text, 0o644)
    else:
        path.unlink(missing_ok=True)
