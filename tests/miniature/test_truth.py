"""Ground truth: exact targets pass, everything an editor can get wrong fails, and for the stated reason."""

import numpy as np
import pytest
import torch

from sifm_core.errors import InputError
from sifm_core.images import to_uint8
from sifm_core.miniature import benchmark, world

ITEMS = benchmark.load(24)


def picture(item, edit=None):
    return torch.from_numpy(world.render(item.scene, edit))


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.id)
def test_the_target_is_right_and_the_source_is_not(item):
    truth = item.truth(item.instruction)
    assert truth.check(picture(item, truth.edit))[:2] == (False, False)
    assert truth.check(item.image)[:2] == (True, False)


@pytest.mark.parametrize("item", ITEMS[:12], ids=lambda i: i.id)
def test_another_edits_target_is_a_mismatch(item):
    truth = item.truth(item.instruction)
    for other in item.unseen:
        edit = item.truth(other).edit
        assert edit != truth.edit
        assert truth.check(picture(item, edit))[0]


def test_painting_everything_is_spill_even_where_the_asked_part_is_right():
    item = next(i for i in ITEMS if " " in i.truth(i.instruction).edit)
    truth = item.truth(item.instruction)
    colour = torch.tensor(world.COLOURS[truth.edit.split()[1]])[:, None, None].expand(3, 64, 64)
    mismatch, _, note = truth.check(colour)
    assert mismatch
    assert "another part" in note


def test_degradation_is_what_no_recolouring_explains():
    item = ITEMS[0]
    truth = item.truth(item.instruction)
    target = picture(item, truth.edit)
    noisy = (target + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert truth.check(noisy)[1]
    brighter = (target * 0.8).clamp(0, 1)  # every part darker: wrong perhaps, but not degraded
    assert not truth.check(brighter)[1]


def test_benchmark_has_the_papers_shape_and_is_frozen():
    items = benchmark.load()
    counts = {c: sum(i.category == c for i in items) for c in world.CATEGORIES}
    assert counts == {"portrait": 35, "landscape": 35, "artwork": 30}
    for item in items:
        edits = [item.truth(p).edit for p in (item.instruction, *item.unseen)]
        assert len(item.unseen) == 5
        assert len(set(edits)) == 6
    first = [(i.id, i.instruction) for i in items[:3]]
    assert first == [
        ("portrait-00", "paint the knitted thing blue"),
        ("landscape-00", "change the color of the stone part to green"),
        ("artwork-00", "change the color of the straw part to gold"),
    ]
    assert np.abs(to_uint8(items[0].image[None]).astype(int).sum() - FROZEN) <= 64 * 64 * 3 * 0.01


FROZEN = 1_629_000
"""Sum of the first picture's 8-bit values (rounding may differ by a level here and there between platforms)."""


def test_unknown_pictures_and_instructions_are_refused():
    with pytest.raises(InputError, match="did you mean portrait-"):
        benchmark.load(ids=["portrait-0"])
    with pytest.raises(InputError, match="expected 1 to 100"):
        benchmark.load(0)
    with pytest.raises(InputError, match="no ground truth"):
        ITEMS[0].truth("make it a cat")
