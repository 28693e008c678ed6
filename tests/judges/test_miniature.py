"""The miniature's judges as machines: shapes, files, words, batches, unclear cases."""

from __future__ import annotations

import json

import pytest
import torch

from sifm_core.judges import load_judge
from sifm_core.judges.miniature import BATCH, save_network, tokenize, words_of
from sifm_core.judges.miniature_networks import NETWORKS
from sifm_core.types import Case, Step

WORDS = ("turn", "the", "striped", "thing", "red", "make", "it", "night")


def _merges(word):
    """The steps by which a byte-pair encoding reads the whole word as one token."""
    return [(word[:i], word[i] + ("</w>" if i == len(word) - 1 else "")) for i in range(1, len(word))]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    merges = list(dict.fromkeys(pair for word in WORDS for pair in _merges(word)))
    tokens = dict.fromkeys(["<|startoftext|>", "<|endoftext|>", *letters, *("".join(pair) for pair in merges)])
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=NETWORKS)
def judge(request, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    network = NETWORKS[request.param](vocab_size=120)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    save_network(network.half(), request.param, thresholds=(0.4, 0.6), words=WORDS, folder=folder)
    return load_judge(f"miniature:{request.param}", folder=folder, tokenizer=tokenizer_folder)


def case(seed=0, prompt="Turn the striped thing red.", size=(64, 64), **fields):
    pictures = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Case(pictures[0], pictures[1], prompt, **fields)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_small_and_see_both_pictures_and_the_instruction(name):
    torch.manual_seed(0)
    network = NETWORKS[name](vocab_size=320).eval()
    assert sum(p.numel() for p in network.parameters()) < 500_000
    source, edited = torch.rand(2, 2, 3, 64, 64).requires_grad_().unbind()
    logits = network(source, edited, torch.randint(320, (2, 16)))
    assert logits.shape == (2, 2)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(logits.sum(), (source, edited), retain_graph=True))
    with torch.no_grad():
        one, other = (network(source, edited, torch.full((2, 16), i)) for i in (3, 4))
    assert not torch.equal(one, other)


def test_saved_judge_answers_like_its_network_at_its_thresholds(judge):
    cases = [case(i) for i in range(6)]
    ids = tokenize(judge.tokenizer, [c.prompt for c in cases], 16)
    with torch.no_grad():
        logits = judge.network(torch.stack([c.source for c in cases]), torch.stack([c.edited for c in cases]), ids)
    for verdict, (mismatch, degraded) in zip(judge.judge(cases), logits.sigmoid().tolist(), strict=True):
        assert verdict.state == "ok"
        assert (verdict.semantic_mismatch, verdict.perceptual_degradation) == (mismatch >= 0.4, degraded >= 0.6)
        sure = (mismatch if mismatch >= 0.4 else 1 - mismatch, degraded if degraded >= 0.6 else 1 - degraded)
        assert verdict.confidence == pytest.approx(min(sure), abs=1e-5)
        assert verdict.cost == 0 and verdict.judge == judge.name
        assert verdict.model_served.startswith(judge.name.split(":")[1] + "@")


def test_batches_and_order_do_not_matter_and_progress_is_told(judge):
    cases = [case(i) for i in range(BATCH + 3)]
    steps: list[Step] = []
    together = judge.judge(cases, on_step=steps.append)
    alone = [judge.judge([c])[0] for c in cases]
    assert [(v.semantic_mismatch, v.reasons) for v in together] == [(v.semantic_mismatch, v.reasons) for v in alone]
    assert [(s.i, s.n) for s in steps] == [(BATCH, len(cases)), (len(cases), len(cases))]
    assert judge.judge([]) == []


def test_any_size_up_to_the_miniatures_goes_in(judge):
    verdicts = judge.judge([case(0, size=(64, 64)), case(0, size=(64, 37)), case(0, size=(16, 65))])
    assert [v.state for v in verdicts] == ["ok", "ok", "refused"] and "64x64" in verdicts[2].reasons


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (case(prompt="Turn the striped thing purple."), "'purple'"),
        (case(prompt="把它变红"), "words"),
        (case(prompt="?!"), "empty"),
        (case(prompt="turn the striped thing red " * 5), "tokens"),
        (Case(torch.rand(1, 64, 64), torch.rand(3, 64, 64), "make it night"), "source"),
        (Case(torch.rand(3, 64, 64), torch.full((3, 64, 64), float("nan")), "make it night"), "edited"),
    ],
)
def test_what_it_cannot_judge_is_an_error_and_spoils_no_neighbour(judge, bad, why):
    good = case(7)
    first, second, third = judge.judge([good, bad, good])
    assert second.state == "error" and why in second.reasons
    assert second.semantic_mismatch is second.perceptual_degradation is second.success is None
    assert first.reasons == third.reasons == judge.judge([good])[0].reasons


def test_words_are_compared_without_case_and_punctuation():
    assert words_of("Turn the STRIPED thing red, please!") == ["turn", "the", "striped", "thing", "red", "please"]


def test_config_is_kept_beside_the_weights(judge, tmp_path):
    name = judge.name.split(":")[1]
    save_network(judge.network, name, words=["b", "a", "b"], folder=tmp_path, notes={"n": 3})
    config = json.loads((tmp_path / f"{name}.json").read_text())
    assert config["words"] == ["a", "b"] and config["notes"] == {"n": 3} and config["thresholds"] == [0.5, 0.5]


class Truth:
    def __init__(self, *answer):
        self.answer = answer

    def check(self, edited):
        if not self.answer:
            raise RuntimeError("scene lost")
        return self.answer


def test_the_renderer_says_the_truth_or_nothing():
    renderer = load_judge("miniature:renderer")
    verdicts = renderer.judge(
        [
            case(truth=Truth(True, False, "the wrong thing is red")),
            case(truth=Truth(False, True, "blobs")),
            case(truth=Truth(True, None, "cannot tell")),
            case(),
            case(truth=Truth()),
        ]
    )
    assert [v.state for v in verdicts] == ["ok", "ok", "ok", "refused", "error"]
    said = [(v.semantic_mismatch, v.perceptual_degradation) for v in verdicts]
    assert said == [(True, False), (False, True), (True, None), (None, None), (None, None)]
    assert verdicts[0].reasons == "the wrong thing is red" and "scene lost" in verdicts[4].reasons
