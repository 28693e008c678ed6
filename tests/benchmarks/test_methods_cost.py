"""The benchmark of all methods: every row is there, counts are those of the parts they consist of."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import methods_cost as cost
from fakes import images
from sifm_core.editors import load_editor
from sifm_core.methods import METHODS
from sifm_core.types import Editor


@pytest.fixture(scope="module")
def editor(ip2p_folder) -> Editor:
    return load_editor(ip2p_folder, device="cpu", size=16, steps=2)


def count(name: str, editor: Editor, **options: object) -> int:
    step = cost.prepared(name, editor, images(1), **options)()
    return cost.flops(lambda: step(0))


def test_counts_are_sums_of_their_parts(editor: Editor) -> None:
    x = images(1)

    def encode_and_back() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(editor.encode(leaf).sum(), leaf)

    def denoise_and_back() -> None:
        leaf = z.clone().requires_grad_()
        torch.autograd.grad(editor.denoise(leaf, z, t, cond).sum(), leaf)

    z, t, cond = editor.encode(x).detach(), torch.tensor([500]), editor.prepare([cost.PROMPT])
    both = cost.flops(encode_and_back)
    network = cost.flops(lambda: editor.denoise(z, z, t, cond))
    assert count("photoguard_encoder", editor) == both
    assert count("editshield", editor, transforms="none") == both
    assert 5 * both < count("editshield", editor) < 5.1 * both  # and the blur itself
    assert count("sds", editor) == both + network
    assert count("mist", editor, mode="textural") == both
    assert count("ace", editor) == count("mist", editor) == both + cost.flops(denoise_and_back)
    whole = count("photoguard_diffusion", editor, edit_steps=2)
    assert 2 * 3 * 2 * network < whole < 3 * 3 * 2 * network + 4 * both  # three branches: there, again, and back
    assert count("random_noise", editor) == 0
    one, two, three = (count("sifm", editor, timesteps=n) for n in (1, 2, 3))
    assert three - two == two - one > 0


def test_the_table_and_the_document_are_one_run(sd3_folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cost, "load_editor", lambda name, **_: load_editor(sd3_folder, device="cpu", size=16))
    names = ["photoguard_encoder", "ace", "random_noise"]
    cost.main(["--json", "--repeats", "1", *(word for name in names for word in ("--method", name))])
    document = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in document["rows"]] == names and document["run"]["pixels"] == "16x16"
    assert all(row["seconds"] > 0 for row in document["rows"])
    assert [row["flop_before"] > 0 for row in document["rows"]] == [False, True, False]  # the target's latent
    said = cost.table(document["rows"])
    assert all(name in said for name in names) and "ace*" in said and "random_noise*" not in said
    asked = []
    monkeypatch.setattr(cost, "measure", lambda editor, repeats, names: asked.append((repeats, names)) or [])
    cost.main([])
    assert asked == [(5, list(METHODS))]
