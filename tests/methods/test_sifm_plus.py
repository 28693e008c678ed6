"""SIFM+: its gradient against the formula written out, what it draws, and the pools that it draws from."""

from __future__ import annotations

import pytest
import torch
from literal import close, gradient, latent, predict, somewhere

from fakes import images
from sifm_core import pipeline
from sifm_core.data.prompts import TEMPLATES
from sifm_core.editors import load_editor
from sifm_core.errors import InputError
from sifm_core.methods import promptless, sifm_plus
from sifm_core.miniature import benchmark, language, world
from sifm_core.noise import fork, normal
from sifm_core.types import Editor
from toy import ToyEditor

PROMPTS = ["make it night", "add a hat"]
POOL = ["a dog", "red", "a cat", "a moon"]
KINDS = {"attribute", "background", "style", "weather", "identity", "object", "removal"}
SUBJECTS = {"any", "portrait", "landscape", "artwork", "product", "animal", "interior"}


@pytest.fixture(scope="module", params=["ip2p", "sd3"])
def editor(request: pytest.FixtureRequest) -> Editor:
    return load_editor(request.getfixturevalue(f"{request.param}_folder"), device="cpu", dtype="float64", steps=3)


def seen(editor: Editor, path: str, run) -> torch.Tensor:
    """What a layer puts out, of SD3's two streams the image's."""
    kept: list[torch.Tensor] = []

    def see(module, args, output) -> None:
        kept.append(output[-1] if isinstance(output, tuple) else output)

    hook = editor.net.get_submodule(path).register_forward_hook(see)
    try:
        run()
    finally:
        hook.remove()
    return kept[0].flatten(1)


@pytest.mark.parametrize("step", [0, 3])
def test_the_gradient_is_that_of_the_formula_run_by_run(editor: Editor, step: int) -> None:
    x0, seeds, runs = images(2).double(), [3, 4], 3
    x, times = somewhere(x0), [200, 400, 600, 800]
    path = "mid_block" if editor.family != "sd3" else "transformer_blocks.1"
    grad_fn = sifm_plus.build(
        editor, x0, editor.prepare(PROMPTS), instructions=POOL, drawn=3, runs=runs, layers=path, seed=seeds
    )
    index, noises, t = grad_fn.draw(step)
    chosen = sifm_plus.choose(lambda texts: True, [(text,) for text in POOL], 12, (), seeds)
    texts = [[PROMPTS[b], *chosen[b]] for b in range(2)]
    asked = [[texts[b][int(row) // 2] for b, row in enumerate(rows)] for rows in index]
    assert [int(k) for k in t] == [times[(step * runs + r) % 4] for r in range(runs)]
    assert torch.equal(noises.transpose(0, 1), normal(noises.transpose(0, 1).shape, fork(seeds, "noise", step)))

    def phi(x: torch.Tensor, r: int) -> torch.Tensor:
        noise, at = noises[r].to(x), t[r].repeat(2)
        return seen(editor, path, lambda: predict(editor, x, noise, at, asked[r]))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return -sum((phi(x, r) - phi(x0, r).detach()).square().mean(dim=1) for r in range(runs)) / runs

    expected, found = gradient(loss, x), grad_fn(x, step)
    assert torch.allclose(found.loss, expected[0], rtol=1e-9) and close(found.grad, expected[1])


def test_kept_is_what_the_editor_responds_to_most(editor: Editor) -> None:
    x, seeds = images(2).double(), [3, 4]
    chosen = sifm_plus.choose(lambda texts: True, [(text,) for text in POOL], 8, (), seeds)
    noise, t = normal(editor.encode(x).shape, fork(seeds, "probe")).double(), torch.tensor([200, 200])

    def predicted(prompts: list[str]) -> torch.Tensor:
        return predict(editor, x, noise, t, prompts).flatten(1)

    none = predicted(["", ""])
    moved = [(predicted([texts[k] for texts in chosen]) - none).square().mean(dim=1) for k in range(len(POOL))]
    wanted = [{texts[k] for k in torch.stack(moved)[:, b].topk(2).indices} for b, texts in enumerate(chosen)]
    grad_fn = sifm_plus.build(editor, x, editor.prepare(["", ""]), instructions=POOL, drawn=2, runs=2, seed=seeds)
    index = torch.cat([grad_fn.draw(step)[0] for step in range(9)])
    found = [{chosen[b][int(row) // 2 - 1] for row in index[:, b]} for b in range(2)]
    assert found == wanted


def test_layers_count_alike_whatever_their_shapes(editor: Editor) -> None:
    x0 = images(1).double()
    paths = ["mid_block", "conv_out"] if editor.family != "sd3" else ["transformer_blocks.1", "proj_out"]
    one, other, both = (
        sifm_plus.build(editor, x0, editor.prepare(PROMPTS[:1]), instructions=POOL, layers=some)(somewhere(x0), 0)
        for some in (paths[:1], paths[1:], paths)
    )
    assert close(both.grad, (one.grad + other.grad) / 2)


def test_latents_of_the_reference_are_the_editors(editor: Editor) -> None:
    x = images(1).double()
    assert close(editor.encode(x), latent(editor, x))


def test_an_instruction_that_is_known_is_drawn_as_often_as_asked_for_and_none_means_the_pool(ip2p_folder) -> None:
    editor, x = load_editor(ip2p_folder, device="cpu"), images(2)

    def shares(prompts: list[str], **chosen: object) -> list[float]:
        grad_fn = sifm_plus.build(editor, x, editor.prepare(prompts), instructions=POOL, runs=4, **chosen)
        drawn = torch.cat([grad_fn.draw(step)[0] for step in range(200)])
        return ((drawn // 2) == 0).double().mean(dim=0).tolist()

    assert shares(["", ""]) == [0, 0]
    assert shares(PROMPTS, known=0.0) == [0, 0] and shares(PROMPTS, known=1.0) == [1, 1]
    one, none = shares([PROMPTS[0], ""], known=0.5)
    assert one == pytest.approx(0.5, abs=0.06) and none == 0


def test_no_instruction_gives_what_no_other_prompt_would(ip2p_folder) -> None:
    editor, x = load_editor(ip2p_folder, device="cpu", size=16), images(1, 16)
    chosen = {"method": "sifm_plus", "steps": 2, "instructions": POOL}
    none, blank = (pipeline.immunize(x, editor, prompt=prompt, **chosen).image for prompt in ("", "  "))
    told = pipeline.immunize(x, editor, prompt="make it night", **chosen).image
    assert torch.equal(none, blank) and not torch.equal(none, told)
    assert promptless("sifm_plus") and not promptless("sifm")
    with pytest.raises(InputError, match="expected an instruction"):
        pipeline.immunize(x, editor, prompt="", method="sifm")


def test_the_loop_sums_up_its_directions_unless_told_otherwise() -> None:
    def update(method: str, **chosen: object) -> str:
        done = pipeline.immunize(images(1, 16), ToyEditor(), prompt="a", method=method, steps=1, **chosen)
        return done.settings["update"]

    assert update("sifm_plus", layers="mid") == "momentum" and update("sifm", layers="mid", timesteps=1) == "steepest"
    assert update("sifm_plus", layers="mid", update="steepest") == "steepest"


def test_what_is_to_be_avoided_is_drawn_in_no_wording() -> None:
    wishes = [("a", "A"), ("b", "B"), ("c", "C")]
    for seed in range(20):
        first, second = sifm_plus.choose(lambda texts: True, wishes, 3, [["B"], ["a", "C"]], [seed, seed + 100])
        assert {text.lower() for text in first} == {"a", "c"} and {text.lower() for text in second} == {"b"}
    with pytest.raises(InputError, match="a list of instructions for each of 2 pictures, got 1"):
        sifm_plus.choose(lambda texts: True, wishes, 3, [["a"]], [1, 2])


def test_what_the_editor_cannot_read_is_passed_over(ip2p_folder) -> None:
    editor, x = load_editor(ip2p_folder, device="cpu"), images(1)
    long = "a word and another " * 100
    grad_fn = sifm_plus.build(editor, x, editor.prepare([""]), instructions=[long, "red"], runs=2)
    assert torch.equal(grad_fn.draw(0)[0], torch.tensor([[1], [1]])), "the one that is left"
    with pytest.raises(InputError, match="can read none"):
        sifm_plus.build(editor, x, editor.prepare([""]), instructions=[long])
    assert sifm_plus.build(editor, x, editor.prepare(["red"]), instructions=[long])(somewhere(x), 0).grad.any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"known": 1.5}, "known: expected a share"),
        ({"runs": 0}, "runs: expected"),
        ({"drawn": True}, "drawn: expected"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict, said: str) -> None:
    editor = ToyEditor()
    with pytest.raises(InputError, match=said):
        sifm_plus.build(editor, images(1), editor.prepare(["a"]), layers="mid", **wrong)


def test_layers_are_those_that_the_editor_says() -> None:
    class Told(ToyEditor):
        telling = "deep"

    def grad(editor: Editor, **chosen) -> torch.Tensor:
        x = images(1)
        return sifm_plus.build(editor, x, editor.prepare(["a"]), instructions=POOL, runs=1, **chosen)(0.9 * x, 0).grad

    mid, deep = (grad(ToyEditor(), layers=name) for name in ("mid", "deep"))
    assert not mid.equal(deep) and grad(ToyEditor()).equal(mid) and grad(Told()).equal(deep)
    assert grad(Told(), layers="mid").equal(mid)
    assert [load_editor(name, device="cpu").telling for name in ("miniature-ip2p", "miniature-sd3")] == ["last", "mid"]


# ---- the pools


def test_the_pools_name_every_subject_and_kind() -> None:
    pools = sifm_plus.pools()
    assert set(pools) == {*SUBJECTS, "miniature"}
    for subject in SUBJECTS:
        assert set(pools[subject]) == KINDS, subject
        assert len(sifm_plus.pool(subject)) >= 40 or subject == "any"
    assert len({wish for subject in SUBJECTS for wish in sifm_plus.pool(subject)}) >= 100
    with pytest.raises(InputError, match="did you mean portrait"):
        sifm_plus.pool("portraits")


def test_no_instruction_stands_twice_or_among_the_benchmarks() -> None:
    texts = [text for subject in SUBJECTS for entry in sifm_plus.pools()[subject].values() for text in entry]
    assert all(text == text.strip() and text.isprintable() and len(text) <= 60 for text in texts)
    assert len(set(map(str.lower, texts))) == len(texts)
    assert not {*map(str.lower, texts)} & {text for some in TEMPLATES.values() for text in some}


def test_the_miniatures_pool_is_its_language_in_words_that_its_benchmark_does_not_use() -> None:
    wishes = sifm_plus.pool("miniature")
    edits = {language.parse(wish[0]) for wish in wishes}
    assert edits == {edit for edit in world.EDITS if world.kind(edit) != "whole"} and len(wishes) == len(edits)
    assert all(wish == language.phrases(language.parse(wish[0]))[language.TRAINED_PHRASES :] for wish in wishes)
    item = benchmark.load(1)[0]
    asked = [item.instruction, *item.unseen]
    shunned = [text for prompt in asked for text in language.wordings(prompt)]
    (drawn,) = sifm_plus.choose(lambda texts: True, wishes, 99, [shunned], [0])
    assert {language.parse(text) for text in drawn} == edits - {language.parse(prompt) for prompt in asked}
