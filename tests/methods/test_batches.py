"""Timesteps and prompts as rows of one batch: the same gradient, however many at once, in float64."""

from __future__ import annotations

import pytest
import torch
from literal import close

from fakes import images
from sifm_core.editors import load_editor
from sifm_core.errors import InputError
from sifm_core.methods import METHODS, get_method, options, rows_of
from sifm_core.methods.batches import at_once
from sifm_core.pipeline import immunize
from sifm_core.types import Editor, Gradient

PROMPTS = ["make it night", "add a hat"]
SUMMED = [name for name in METHODS if "rows" in options(name)]
CHOSEN = {
    "sifm": {"timesteps": 5, "layers": "mid", "prompts": ["a dog", "red"], "aggregation": "per_layer", "lam": 3.0},
    "semantic_attack": {"timesteps": 5},
    "sifm_plus": {"runs": 5, "timesteps": 5},
}


@pytest.fixture(scope="module", params=["ip2p", "sd3", "ultraedit"])
def editor(request: pytest.FixtureRequest) -> Editor:
    return load_editor(request.getfixturevalue(f"{request.param}_folder"), device="cpu", dtype="float64", steps=3)


def test_every_method_that_sums_over_timesteps_has_rows() -> None:
    assert set(SUMMED) == {name for name in METHODS if "timesteps" in options(name)} == set(CHOSEN)


@pytest.mark.parametrize("name", SUMMED)
def test_the_gradient_is_the_same_however_many_rows_run_at_once(name: str, editor: Editor, monkeypatch) -> None:
    x0 = images(2).double()
    x, cond = (x0 + 0.02 * torch.rand(x0.shape, dtype=torch.float64)).clamp(0, 1), editor.prepare(PROMPTS)
    sizes: list[int] = []
    denoise = editor.denoise
    monkeypatch.setattr(editor, "denoise", lambda z, *rest: sizes.append(len(z)) or denoise(z, *rest))
    runs = 5 * (3 if name == "sifm" else 1)

    def gradient(rows: int) -> Gradient:
        sizes.clear()
        grad_fn = get_method(name).build(editor, x0, cond, rows=rows, seed=[3, 4], **CHOSEN[name])
        if name == "sifm_plus":
            sizes.clear()  # of its probe of the instructions
        return grad_fn(x, 0)

    expected = gradient(1)
    assert sizes == [2] * 2 * runs, "one run of both pictures at a time, clean and protected"
    for rows, together in ((6, 3), (0, runs)):
        found = gradient(rows)
        assert max(sizes) == 2 * together and sum(sizes) == 2 * 2 * runs
        assert close(found.grad, expected.grad) and torch.allclose(found.loss, expected.loss, rtol=1e-10)
        for key, value in expected.log.items():
            assert torch.allclose(found.log[key], value, rtol=1e-9), key


def test_terms_apart_and_balanced_are_the_same_too(editor: Editor) -> None:
    x0 = images(2).double()
    x, cond = (x0 + 0.02).clamp(0, 1), editor.prepare(PROMPTS)
    for chosen in ({"part_norms": True}, {"balanced": True}, {"noise": "resampled"}, {"posterior": "sample"}):
        build = get_method("sifm").build
        one, all_ = (
            build(editor, x0, cond, timesteps=3, layers="mid", rows=n, aggregation="per_layer", **chosen)(x, 1)
            for n in (1, 0)
        )
        assert close(all_.grad, one.grad), chosen
        assert all(torch.allclose(all_.log[key], one.log[key], rtol=1e-9) for key in one.log), chosen


def test_the_rule_follows_size_and_number_type_alone(ip2p_folder, sd3_folder) -> None:
    for folder in (ip2p_folder, sd3_folder):
        wide, half = (load_editor(folder, device="cpu", dtype=kind, size=32) for kind in ("float32", "bfloat16"))
        factor = wide.pipe.vae_scale_factor
        positions = (512 // factor) ** 2
        assert half.rows(512, 512) == max(1, half.positions_at_once // positions)
        assert wide.rows(512, 512) == max(1, wide.positions_at_once // 2 // positions)
        assert half.rows(64, 64) == half.positions_at_once // (64 // factor) ** 2 > half.rows(512, 512)
        assert half.rows(4096, 4096) == 1


@pytest.mark.parametrize("rows", [-1, True, 2.0, "3"])
def test_a_number_of_rows_that_is_none_is_refused(rows: object, editor: Editor) -> None:
    with pytest.raises(InputError, match="rows: expected a whole number of at least 0"):
        at_once(editor, (16, 16), rows)


def test_a_method_that_keeps_more_runs_fewer_rows_and_its_settings_say_so(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    most = {name: rows_of(name, editor, (16, 16)) for name in METHODS}
    assert most["semantic_attack"] == most["sifm"] // 2 == editor.rows(16, 16) // 2 and most["mist"] is None
    done = immunize(images(1), editor, prompt="a hat", method="semantic_attack", steps=1, timesteps=1)
    assert done.settings["rows"] == most["semantic_attack"]


def test_what_ran_at_once_stands_in_the_settings(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    chosen: dict[int, dict[str, int]] = {0: {}, 3: {"rows": 3}}
    done = {n: immunize(images(1), editor, prompt="a", steps=1, timesteps=2, **rows) for n, rows in chosen.items()}
    assert done[3].settings["rows"] == 3 and done[0].settings["rows"] == editor.rows(16, 16) > 3
    assert "rows" not in immunize(images(1), editor, prompt="a", method="photoguard_encoder", steps=1).settings
