# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place where the engine meets Ansible: arguments in, results, differences and errors out."""

from __future__ import annotations

import errno
import gc
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from .errors import EngineError
from .outcome import Outcome, text_of

INTERFACE_ARGUMENT = {"type": "str", "required": True}
BALANCER_ARGUMENT = {"type": "str", "default": "main"}
SIZES = {
    "max_services": 1024,
    "max_backends": 16384,
    "max_endpoints": 32768,
    "max_flows": 262144,
    "max_new_flows": 100000,
    "max_sessions": 65536,
    "max_filters": 1024,
}
# The longest list that is part of a result as it was given.
SHOWN_ENTRIES = 100
# Of plugins/doc_fragments/program.py.
PROGRAM_ARGUMENTS = {
    "interfaces": {"type": "list", "elements": "str"},
    "mode": {"type": "str", "choices": ["auto", "native", "generic", "tc", "offload"], "default": "auto"},
    "prepare": {"type": "bool", "default": False},
    "multi_buffer": {"type": "bool", "default": False},
    "latency": {"type": "bool", "default": False},
    "unserved": {"type": "str", "choices": ["drop", "pass"], "default": "drop"},
    "reply_check": {"type": "str", "choices": ["strict", "interface", "off"], "default": "strict"},
    "hash_seed": {"type": "str", "default": "", "no_log": True},
    "virtual_macs": {"type": "list", "elements": "str", "default": []},
    "next_program": {"type": "str", "default": ""},
    **{name: {"type": "int", "default": default} for name, default in SIZES.items()},
    "source": {"type": "path", "default": "/usr/lib/lbops/current/bpf"},
    "force": {"type": "bool", "default": False},
}


def settings_of(params: dict[str, Any], attached: bool) -> dict[str, Any]:
    """What parse_settings() takes, from PROGRAM_ARGUMENTS."""
    return {
        **{name: params[name] for name in PROGRAM_ARGUMENTS if name not in SIZES and name != "force"},
        "attached": attached,
        "sizes": {name: params[name] for name in SIZES},
    }


def _lines(content: Any) -> str:
    """One line an entry, so that a difference shows entries and not braces."""
    entries = content if isinstance(content, list) else [{key: value} for key, value in content.items()]
    return "".join(
        " ".join(f"{key}={text_of(value)}" for key, value in entry.items() if value is not None) + "\n"
        for entry in entries
    )


def _brief(params: dict[str, Any]) -> dict[str, Any]:
    """The arguments as Ansible shows them of a run: of long lists how long they are.

    Ten thousand backends would be searched for secrets and sent back, only to be printed with -vvv.
    """
    return {
        name: f"{len(value)} entries" if isinstance(value, list) and len(value) > SHOWN_ENTRIES else value
        for name, value in params.items()
    }


def _words(error: OSError) -> str:
    if not error.filename:
        return f"the kernel refused an operation: {error}"
    remedy = "; free some space there and run this again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.filename2 or error.filename}: {error.strerror}{remedy}"


def run(
    argument_spec: dict[str, Any], operation: Callable[[dict[str, Any], bool], Outcome], **constraints: Any
) -> None:
    """A module: `operation` gets the arguments and whether this is check mode; `constraints` are AnsibleModule's."""
    # A process this short needs no collector, which would search ten thousand backends again and again.
    gc.disable()
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **constraints)
    try:
        outcome = operation(module.params, module.check_mode)
    except EngineError as error:
        module.fail_json(msg=str(error), **error.result)
    except OSError as error:
        subject = module.params.get("interface") or f"balancer {module.params.get('balancer')}"
        module.fail_json(msg=f"{subject}: {_words(error)}")
    for warning in outcome.warnings:
        module.warn(warning)
    result = {"changed": outcome.changed, **outcome.details, "invocation": {"module_args": _brief(module.params)}}
    found = {"before": outcome.before, "after": outcome.after}
    result.update({key: value for key, value in found.items() if value is not None})
    if module._diff:
        before, after = (outcome.before, outcome.after) if outcome.diff is None else outcome.diff()
        result["diff"] = {"before": _lines(before), "after": _lines(after)}
    module.exit_json(**result)


def report(argument_spec: dict[str, Any], read: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A module that changes nothing."""
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True)
    try:
        facts = read(module.params)
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **facts)
