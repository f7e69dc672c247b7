# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seed of the flow hash: what it may be, where it counts, and that nothing shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.lbops.xdp.plugins.module_utils.adapter import PROGRAM_ARGUMENTS
from ansible_collections.lbops.xdp.plugins.module_utils.balancer import compiler, consequences, slices, state
from ansible_collections.lbops.xdp.plugins.module_utils.balancer.document import (
    Document,
    parse_document,
    parse_settings,
)
from ansible_collections.lbops.xdp.plugins.module_utils.errors import EngineError
from ansible_collections.lbops.xdp.plugins.module_utils.outcome import Outcome
from ansible_collections.lbops.xdp.plugins.module_utils.tables.digest import tables_digest
from ansible_collections.lbops.xdp.plugins.module_utils.tables.layout import Sizes

SEED, OTHER = "9f86d081884c7d65", "00000000deadbeef"
EFFECT = (
    "hash_seed changes, so flows that are not in a flow table move to other backends, and open connections among "
    "them are reset"
)


def document(seed: Any, **more: Any) -> Document:
    service = {"name": "dns", "address": "192.0.2.1", "protocol": "udp", "port": 53}
    return parse_document({"interfaces": ["eth0"], "services": [service], "hash_seed": seed, **more})


@pytest.mark.parametrize("raw, seed", [(None, ""), ("", ""), (SEED, SEED), (SEED.upper(), SEED), (OTHER, OTHER)])
def test_it_is_16_digits_or_nothing(raw, seed):
    parsed = document(raw)
    assert parsed.settings.hash_seed == seed
    assert parse_document(parsed.as_dict()) == parsed


@pytest.mark.parametrize(
    "raw", ["9f86d081884c7d6", SEED + "0", "0x86d081884c7d65", SEED + "\n", "secretsecretsecr", 5, True]
)
def test_what_it_is_not(raw):
    with pytest.raises(EngineError) as caught:
        parse_settings({"interfaces": ["eth0"], "hash_seed": raw})
    assert str(caught.value) == (
        "hash_seed is not 16 hexadecimal digits; make one with openssl rand -hex 8, and quote it in the inventory"
    )


def test_zero_is_refused():
    with pytest.raises(EngineError, match="hash_seed is zero, which is no secret"):
        parse_settings({"interfaces": ["eth0"], "hash_seed": "0" * 16})


def test_ansible_hides_it():
    assert PROGRAM_ARGUMENTS["hash_seed"] == {"type": "str", "default": "", "no_log": True}
    assert SEED not in repr(document(SEED))


def test_it_is_compiled_in(tmp_path):
    (tmp_path / compiler.SOURCE).touch()
    plain = compiler.Build(tmp_path, frozenset(), Sizes(), cpus=2)
    seeded, other = replace(plain, hash_seed=SEED), replace(plain, hash_seed=OTHER)
    assert not [flag for flag in plain.flags if "SEED" in flag]
    assert [flag for flag in seeded.flags if flag not in plain.flags] == [f"-DHASH_SEED=0x{SEED}ULL"]
    assert len({plain.digest(), seeded.digest(), other.digest()}) == 3
    assert SEED not in repr(seeded)


def test_balancers_with_another_seed_have_another_digest():
    config = document(SEED).config
    digests = {tables_digest(config), tables_digest(config, (), SEED), tables_digest(config, (), OTHER)}
    assert len(digests) == 3 and tables_digest(config, (), "") in digests


@pytest.mark.parametrize("before, after", [("", SEED), (SEED, ""), (SEED, OTHER)])
def test_a_change_is_announced_and_not_shown(before, after):
    old, new = document(before), document(after)
    assert consequences.resets(old, new) == [EFFECT]
    outcome = slices.document_outcome(Outcome(True, old, new, {}, []))
    assert outcome.diff is not None
    lines_before, lines_after = outcome.diff()
    assert {"hash_seed": "set" if before else None} in lines_before
    assert {"hash_seed": "set" if after else None} in lines_after and {"effect": EFFECT} in lines_after
    assert SEED not in str((lines_before, lines_after)) and OTHER not in str((lines_before, lines_after))


def test_a_balancer_without_services_and_one_that_keeps_its_seed_move_nothing():
    assert consequences.resets(document("", services=[]), document(SEED)) == []
    assert consequences.resets(document(SEED), document(SEED)) == []


def test_state_files_keep_it_and_older_ones_have_none():
    for seed in ("", SEED):
        raw = document(seed).as_dict()
        assert state._load_document(raw).settings.hash_seed == seed
    del raw["hash_seed"]
    assert state._load_document(raw).settings.hash_seed == ""
