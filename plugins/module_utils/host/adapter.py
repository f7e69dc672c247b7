# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the installation of the engine and its units meets Ansible."""

from __future__ import annotations

from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ..errors import EngineError
from ..outcome import Outcome


def run(argument_spec: dict[str, Any], operation: Callable[[dict[str, Any], bool], Outcome]) -> None:
    """A module: `operation` gets the arguments and whether this is check mode. Its outcome has lists of lines."""
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True)
    try:
        outcome = operation(module.params, module.check_mode)
    except EngineError as error:
        module.fail_json(msg=str(error), **error.result)
    except OSError as error:
        module.fail_json(msg=f"{error.filename2 or error.filename or 'the kernel'}: {error.strerror}")
    result = {"changed": outcome.changed, **outcome.details}
    if module._diff:
        result["diff"] = {
            "before": "".join(f"{line}\n" for line in outcome.before),
            "after": "".join(f"{line}\n" for line in outcome.after),
        }
    module.exit_json(**result)
