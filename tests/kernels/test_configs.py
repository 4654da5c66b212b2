"""The table of tiles: what bits depend on, and how a product is cut."""

import random
from dataclasses import replace

import pytest

from streamproc.kernels.configs import CHIPS, INTERPRETED, Chip, ProductTile, config_for

AMPERE, HOPPER, BLACKWELL = (CHIPS[major] for major in (8, 9, 10))
ALL = pytest.mark.parametrize("chip", [AMPERE, HOPPER, BLACKWELL, INTERPRETED], ids=lambda chip: chip.name)


def test_a_chip_gets_the_newest_table_that_is_not_newer_than_it() -> None:
    tables = {(8, 0): AMPERE, (8, 9): AMPERE, (9, 0): HOPPER, (10, 3): BLACKWELL, (12, 1): AMPERE, (13, 0): AMPERE}
    for capability, table in tables.items():
        assert config_for(capability) == replace(table, capability=capability)
    with pytest.raises(ValueError, match=r"7\.5 .* 8\.0 or newer"):
        config_for((7, 5))


@ALL
def test_the_digest_tells_what_bits_depend_on(chip: Chip) -> None:
    changes = ("instruction", "depth_step", "least_piece", "fill")
    others = [replace(chip, product=replace(chip.product, **{name: 7})) for name in changes]
    others += [replace(chip, name="other"), replace(chip, capability=(8, 9))]
    assert len({other.digest for other in (chip, *others)}) == 1 + len(others)
    alike = replace(chip, product=replace(chip.product, tiles=(), group=1, odd=ProductTile(1, 1, 1, 1, 1)))
    assert alike.digest == chip.digest


def test_chips_of_different_instructions_have_different_digests() -> None:
    capabilities = [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)]
    assert len({config_for(capability).digest for capability in capabilities}) == len(capabilities)


@ALL
def test_pieces_are_whole_steps_and_cover_the_depth(chip: Chip) -> None:
    rng = random.Random(0)
    for _ in range(1000):
        columns, depth = rng.randrange(1, 9000), rng.randrange(1, 30000)
        plans = [chip.product.plan(rows, columns, depth) for rows in (1, 16, 17, 64, 65, 500, 9000)]
        assert len({(plan.num_pieces, plan.piece) for plan in plans}) == 1
        plan = plans[0]
        assert plan.num_pieces * plan.piece >= depth
        for plan in plans:
            assert plan.num_pieces > 1 or not plan.has_programs
            assert plan.piece % plan.tile.depth == 0
            assert plan.has_programs or plan.tile.holds(1 + (plan.num_pieces > 1))


@ALL
def test_tiles_fit_into_pieces_and_registers(chip: Chip) -> None:
    tiles = [tile for _, tiles in chip.product.tiles for tile in tiles]
    assert all(chip.product.depth_step % tile.depth == 0 for tile in tiles)
    assert all(tile.holds(1) for tile in tiles)
    if chip is INTERPRETED:
        assert {tile.depth for tile in (*tiles, chip.product.odd)} == {chip.product.depth_step}


def test_an_8b_model_is_cut_as_the_table_says() -> None:
    pieces = {(28672, 4096): 1, (128256, 4096): 1, (6144, 4096): 1, (4096, 4096): 2, (4096, 14336): 2}
    assert {shape: HOPPER.product.num_pieces(*shape) for shape in pieces} == pieces
    plans = {rows: HOPPER.product.plan(rows, 4096, 4096) for rows in (1, 64, 65, 512, 8192)}
    assert [(plan.tile.columns, plan.has_programs) for plan in plans.values()] == [
        (32, False), (64, True), (64, False), (128, False), (128, False)]  # fmt: skip
