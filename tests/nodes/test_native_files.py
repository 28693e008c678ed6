"""Editor from Model on what loaders read from files: number types, quantised weights, LoRAs, GGUF's packed tensors."""

from __future__ import annotations

import json

import packed_weights
import pytest
import torch
from test_native import edit, examine, immunize, managed, pictures

import core_models
from benchmarks import native_models
from benchmarks.native_files import rows

pytestmark = pytest.mark.usefixtures("comfy")
WORST = {"int8 scaled": 0.1}
"""Numbers -> how far the gradient may be from finite differences, where that is not :data:`USUAL`."""
USUAL = 5e-3


@pytest.mark.parametrize("kind", ["FLUX Kontext", "Stable Diffusion 3"])
def test_gradients_through_files_that_cores_loaders_read(comfy, kind):
    found = {row["numbers"]: row for row in rows([kind])}
    assert len(found) == 7
    for numbers, row in found.items():
        assert row["off"] < WORST.get(numbers, USUAL) < row["allowed"], row
    assert found["float32"]["alike"] == pytest.approx(1) and found["float32 + LoRA"]["alike"] < 0.99
    assert 0.9 < found["fp8 scaled"]["alike"] < 1 and found["bfloat16"]["alike"] > 0.998


@pytest.fixture(params=["kontext", "qwen"])
def loaded(request, comfy):
    with torch.inference_mode():
        core_models.small_scales()
        made = getattr(core_models, request.param)()
        yield made._replace(model=packed_weights.packed(made.model))


def test_packed_weights_and_loras_on_them_have_exact_gradients_and_stay_as_they_are(loaded, request):
    x, weights = pictures(), [p for p in loaded.model.model.parameters() if isinstance(p, packed_weights.Packed)]
    raw = [weight.as_subclass(torch.Tensor).clone() for weight in weights]
    editor = managed(loaded)
    before, prints = edit(editor, x), {editor.editor.fingerprint}
    assert examine(editor, x).gradient < 0.01
    plain = immunize(editor, x)
    assert 0 < plain.linf <= 8.001 / 255 and torch.equal(edit(editor, x), before)
    clone = loaded.model.clone()
    key = next(k for k, p in clone.model.named_parameters() if isinstance(p, packed_weights.Packed))
    clone.add_patches({key: ("diff", (torch.randn(weights[0].shape) * 0.05,))}, 1.0)
    patched = managed(loaded._replace(model=clone))
    assert examine(patched, x).gradient < 0.01 and not torch.equal(edit(patched, x), before)
    prints.add(patched.editor.fingerprint)
    assert torch.equal(edit(editor, x), before) and len(prints) == 2
    now = [p for p in loaded.model.model.parameters() if isinstance(p, packed_weights.Packed)]
    assert all(torch.equal(p.as_subclass(torch.Tensor), r) for p, r in zip(now, raw, strict=True))
    assert [p.tensor_shape for p in now] == [p.tensor_shape for p in weights] and not any(p.patches for p in now)


def test_core_models_at_full_size_are_measured_as_small_ones_are_here(comfy, capsys):
    native_models.main(["--tiny", "--device", "cpu", "--json", "--only", "sd3-medium bfloat16 whole"])
    (row,) = map(json.loads, capsys.readouterr().out.splitlines()[-1:])
    assert "of finite differences" in row["doctor"] and row["unchanged"] and "problem" not in row
    assert row["T=10"] > row["T=4"] > 0 and row["edit s"] > 0
