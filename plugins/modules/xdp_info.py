#!/usr/bin/python
# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_info
short_description: Read everything live from an XDP load balancer
version_added: 0.1.0
description:
  - Returns program, services, backends, filters, reasons and history of one balancer. Changes nothing.
extends_documentation_fragment:
  - lbops.xdp.balancer
attributes:
  check_mode:
    description: Changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: full
seealso:
  - module: lbops.xdp.xdp_program
"""

EXAMPLES = r"""
- name: Look at the balancer
  lbops.xdp.xdp_info:
  register: balancer
"""

RETURN = r"""
program:
  description:
    - The program, its hook on each of the C(interfaces), its features, and what the kernel says of it.
    - C(attached_at), C(applied_at) and C(counting_since) are seconds since 1970, when the program was attached, when
      the document was applied last, and since when counters have only grown. C(applied_by) says who applied it.
    - C(generation) tells how often the balancer was changed.
    - C(problems) has a sentence for each interface that is gone or down, lacks the program, or does not forward while
      the kernel's tables decide where packets go next, and for a next program that is not called; it is empty for a
      balancer that works, or that was detached on purpose.
    - C(next_program) is there if the balancer has one, with its C(path) and the C(program_id) that is called, 0 for
      none.
    - C(tables_digest) is SHA-256 over what the lookup tables are computed from, backends that health checks keep out
      left out; hosts that spread packets alike have the same.
    - C(attached) is true only if packets reach the program. Where something of others runs in front of it on the hook
      of tc, C(shadowed_by) of the interface lists that, each with the command that detaches it.
  returned: success
  type: dict
  sample: {"attached": true, "interfaces": [{"interface": "eth0", "hook": "native"}], "program_id": 42}
history:
  description:
    - The last ten documents that were applied, the newest first, each with C(generation), C(applied_at) in seconds
      since 1970 and C(applied_by). One whose file is damaged has C(damaged) instead.
  returned: success
  type: list
  elements: dict
services:
  description:
    - The services with C(packets), C(bytes), C(reply_packets), C(reply_bytes) and C(new_flows).
    - Bytes are those of frames.
  returned: success
  type: list
  elements: dict
backends:
  description:
    - The backends with the same counters, and with C(healthy), whether health checks found the backend up; null while
      nothing has checked it.
  returned: success
  type: list
  elements: dict
filters:
  description: The filters with C(packets), those that matched, and C(dropped).
  returned: success
  type: list
  elements: dict
reasons:
  description: How many packets were passed, dropped, forwarded in spite of it or answered, by reason.
  returned: success
  type: list
  elements: dict
  sample: [{"reason": "not_ours", "verdict": "pass", "packets": 17}]
"""

from ansible_collections.lbops.xdp.plugins.module_utils.adapter import BALANCER_ARGUMENT, report
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.balancer import Balancer


def main():
    report({"balancer": BALANCER_ARGUMENT}, lambda params: Balancer(params["balancer"]).info())


if __name__ == "__main__":
    main()
