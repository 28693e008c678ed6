"""python -m benchmarks.restorer: a network learns to undo, each picture is restored by the one that has not seen it."""

from __future__ import annotations

import pytest
import torch

from benchmarks import restorer
from sifm_core.miniature import benchmark
from sifm_core.store import Store
from sifm_core.types import Record, Verdict


def test_a_restorer_learns_what_was_added_and_leaves_clean_pictures_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(6, 3, 4, 4, generator=draw), (16, 16), mode="bicubic")
    clean = 0.2 + 0.6 * clean.clamp(0, 1)
    stripes = 0.1 * (torch.arange(16) % 2 - 0.5).expand(6, 3, 16, 16)
    net = restorer.trained(clean[:5] + stripes[:5], clean[:5], 80, seed=1)
    assert net(clean + stripes)[5].sub(clean[5]).abs().mean() < 0.5 * stripes.abs().mean(), "one it has not seen"
    assert net(clean)[5].sub(clean[5]).abs().mean() < 0.5 * stripes.abs().mean()
    again = restorer.trained(clean[:5] + stripes[:5], clean[:5], 2, seed=1)
    assert again(clean).equal(restorer.trained(clean[:5] + stripes[:5], clean[:5], 2, seed=1)(clean))
    assert not again(clean).equal(restorer.trained(clean[:5] + stripes[:5], clean[:5], 2, seed=2)(clean))


def test_every_row_is_restored_by_the_network_that_saw_the_other_half(tmp_path, capsys, monkeypatch) -> None:
    items, seen = benchmark.load(3), []

    def learn(protected, clean, steps, seed):
        seen.append((len(clean), steps, seed))
        shade = len(clean) / 10
        return lambda x: torch.full_like(x, shade)

    def judged(x, attacks, editor, judges):
        assert [judge.name for judge in judges] == ["miniature:conv", "miniature:renderer"]
        assert x[:, 0, 0, 0].mul(255).round().tolist() == [26, 51, 26][: len(x)], (
            "two pictures make one half, one the other"
        )
        return 0.5, None

    monkeypatch.setattr(restorer, "trained", learn)
    monkeypatch.setattr(restorer, "judged", judged)
    said = tuple(
        Verdict(f"miniature:{name}", "ok", semantic_mismatch=True, perceptual_degradation=False)
        for name in ("conv", "renderer")
    )
    with Store(tmp_path) as store:
        for row in ("clean", "SIFM+"):
            for item in items:
                image = store.put_image(item.image[None])
                info = {"purifier": "", "edit_seed": 1}
                store.put_record(
                    Record(
                        f"{row}{item.id}", item.id, "", item.instruction, "original", "miniature-ip2p", row, 0, 0.03,
                        image, image, image, verdicts=said, info=info,
                    )
                )  # fmt: skip
    restorer.main([str(tmp_path), "--steps", "7"])
    assert seen == [(1, 7, 1), (2, 7, 1)]
    printed = capsys.readouterr().out.splitlines()[2:]
    assert printed == ["| clean | 100% | 50% | 100% | – |", "| SIFM+ | 100% | 50% | 100% | – |"]


def test_knowing_stays_within_the_budget_and_sees_through_the_network() -> None:
    items, calls = benchmark.load(1), []

    def net(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * 1

    editor = restorer.load_editor("miniature-ip2p", device="cpu")
    x = restorer.knowing(items, editor, net, 2)
    assert (x - items[0].image).abs().max() <= 0.03 + 1e-6 and calls == [1], "in every other iteration"


@pytest.mark.parametrize("said", [[], [None]])
def test_a_share_of_nothing_is_none(said: list) -> None:
    assert restorer._share(said) is None
