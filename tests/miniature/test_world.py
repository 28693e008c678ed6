"""The world: deterministic, instructions without overlap, and edits that change what they name and nothing else."""

import numpy as np
import pytest

from sifm_core.miniature import language, world


def scenes(n=30, seed=3):
    rng = np.random.default_rng(seed)
    return [world.sample(rng, world.CATEGORIES[i % 3]) for i in range(n)]


def test_same_seed_same_pixels():
    one, two = (world.render(world.sample(np.random.default_rng(11))) for _ in range(2))
    assert one.shape == (3, 64, 64)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)


def test_every_edit_has_sixteen_instructions_and_eight_captions_and_no_two_edits_share_one():
    said = {edit: (*language.phrases(edit), *language.captions(edit)) for edit in world.EDITS}
    assert len(said) == 32
    assert all(len(texts) == 16 + 8 for texts in said.values())
    assert len({text for texts in said.values() for text in texts}) == 32 * 24
    assert all(language.parse(text.upper()) == edit for edit, texts in said.items() for text in texts)
    assert language.parse("make it a cat") is None


def test_held_out_words_stand_in_no_trained_text():
    held = {p for e in world.EDITS for p in (*language.phrases(e)[12:], *language.captions(e)[6:])}
    assert not held & set(language.trained())
    assert len(language.trained()) == 32 * 18


@pytest.mark.parametrize("scene", scenes(), ids=lambda s: s.category)
def test_a_material_edit_changes_its_part_alone(scene):
    source = world.render(scene)
    assert len(set(scene.materials)) == len(scene.materials) >= 2
    np.testing.assert_allclose(sum(layer.cover for layer in scene.layers), 1, atol=1e-5)
    edit = f"{scene.materials[0]} blue"
    changed = np.abs(world.render(scene, edit) - source).max(0) > 1e-6
    cover = next(layer.cover for layer in scene.layers if layer.material == scene.materials[0])
    assert changed[cover > 0.5].mean() > 0.99
    assert not changed[cover == 0].any()


@pytest.mark.parametrize("edit", world.IDENTITY_EDITS)
def test_an_identity_edit_changes_the_person_alone(edit):
    scene = next(s for s in scenes(60) if edit in s.edits)
    assert scene.category == "portrait"
    changed = np.abs(world.render(scene, edit) - world.render(scene)).max(0) > 0.02
    person = sum(layer.cover for layer in scene.concerned(edit))
    assert changed[person > 0.9].mean() > 0.9
    assert not changed[person == 0].any()


@pytest.mark.parametrize("edit", world.GLOBAL_EDITS)
def test_an_edit_of_the_whole_picture_changes_nearly_all_of_it(edit):
    for scene in scenes(6):
        changed = np.abs(world.render(scene, edit) - world.render(scene)).max(0) > 0.02
        assert changed.mean() > 0.9


def test_a_material_shows_in_texture_alone():
    """Over many scenes a material's mean colour says nothing: no channel's mean differs from the others' by much."""
    seen = {m: [] for m in world.MATERIALS}
    for scene in scenes(600, seed=5):
        for layer in scene.layers:
            if layer.material:
                seen[layer.material].append(layer.colour.mean((1, 2)))
                assert abs(layer.texture.mean()) < 6e-3
                assert 0.02 < np.abs(layer.texture).mean() < 0.085
    means = np.array([np.mean(v, 0) for v in seen.values()])
    assert (means.max(0) - means.min(0)).max() < 0.08
