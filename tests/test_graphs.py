"""Iterations recorded as CUDA graphs: the same numbers, the same reports, nothing left; and what can be recorded."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fakes import images
from sifm_core import graphs, pipeline
from sifm_core.editors import load_editor
from sifm_core.editors.skeleton import skeleton
from sifm_core.gradients import through_resize
from sifm_core.methods import METHODS, get_method, options
from sifm_core.pgd import LATE, pgd
from sifm_core.types import Editor, Gradient, Image, Sampled, Step

GRADIENT = [name for name in METHODS if hasattr(get_method(name), "build")]
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def build(name: str, editor: Editor, x: Image, **chosen: object) -> Sampled:
    module = get_method(name)
    seeded = {"seed": 3} if "seed" in inspect.signature(module.build).parameters else {}
    quick = {key: 2 for key in ("timesteps", "edit_steps") if key in options(name)}
    return module.build(editor, x, editor.prepare(["add a hat"] * len(x)), **seeded | quick | chosen)


class OnTheDevice(TorchDispatchMode):
    """Fails at what cannot be recorded: to read a number of the device, to copy to it, to draw on it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        out = func(*args, **kwargs or {})
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name:
            assert not any(leaf.is_meta for leaf in given), f"{name} reads the device"
        if ("_to_copy" in name or "copy_" in name) and any(leaf.is_meta for leaf in made):
            assert all(leaf.is_meta for leaf in given), f"{name} copies to the device"
        assert not any(word in name for word in ("randn", "normal", "bernoulli", "rand")), f"{name} draws"
        return out


@pytest.mark.parametrize("family", ["ip2p", "sd3", "ultraedit"])
@pytest.mark.parametrize("name", [name for name in GRADIENT if name != "semantic_attack"])  # whose words meta has not
def test_an_iteration_neither_reads_nor_copies_nor_draws(name: str, family: str, request) -> None:
    editor = skeleton(str(request.getfixturevalue(f"{family}_folder")), text=False, size=16)
    x = torch.zeros(2, 3, 16, 16, device="meta")
    grad_fn = through_resize(build(name, editor, x), (16, 16))
    drawn = [numbers.to("meta") for numbers in grad_fn.draw(0)]
    grad_fn.gradient(torch.zeros(2, 3, 24, 24, device="meta"), *drawn)  # as before a recording: tables move once
    with OnTheDevice():
        assert grad_fn.gradient(torch.zeros(2, 3, 24, 24, device="meta"), *drawn).grad.shape == (2, 3, 24, 24)


@pytest.mark.parametrize("bad", [lambda x: bool(x.sum() > 0), lambda x: x.sum().item(), lambda x: torch.randn_like(x)])
def test_the_check_above_sees_what_it_is_for(bad: Callable) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), OnTheDevice():
        bad(torch.zeros(3, device="meta"))


def test_what_a_step_draws_is_what_it_is_called_with(ip2p_folder) -> None:
    editor, x = load_editor(ip2p_folder, device="cpu", dtype="float64"), images(2).double()
    for name in GRADIENT:
        grad_fn = build(name, editor, x)
        whole, halves = grad_fn(x * 0.9, 5), grad_fn.gradient(x * 0.9, *grad_fn.draw(5))
        assert torch.equal(whole.grad, halves.grad) and torch.equal(whole.loss, halves.loss), name


def test_off_cuda_everything_runs_as_it_is() -> None:
    calls: list[int] = []
    plain = lambda x, step: calls.append(step) or Gradient(x.sum(dim=(1, 2, 3)), torch.ones_like(x))  # noqa: E731
    assert graphs.replayed(plain) is plain
    sampled = Sampled(lambda step: (torch.tensor([step]),), lambda x, n: plain(x, int(n)))
    replayed = graphs.replayed(sampled)
    for step in range(5):
        replayed(images(1), step)
    assert calls == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module", params=["ip2p", "sd3", "ultraedit"])
def on_card(request: pytest.FixtureRequest) -> Editor:
    return load_editor(
        request.getfixturevalue(f"{request.param}_folder"), device="cuda", dtype="float32", steps=3, size=32
    )


@gpu
@needs_cuda
@pytest.mark.parametrize("name", GRADIENT)
def test_a_replay_is_the_iteration(name: str, on_card: Editor) -> None:
    x0 = images(2).cuda()
    plain = build(name, on_card, x0)
    replayed = graphs.replayed(plain)
    for step in range(6):
        x = (x0 + 0.02 * torch.rand(x0.shape, generator=torch.Generator().manual_seed(step)).cuda()).clamp(0, 1)
        expected, found = plain(x, step), replayed(x, step)
        assert torch.allclose(found.loss, expected.loss, rtol=1e-4), step
        assert float((found.grad - expected.grad).norm()) <= 1e-3 * float(expected.grad.norm()), step
        assert found.log.keys() == expected.log.keys()
    assert replayed._graph is not None, "it was never recorded"


@gpu
@needs_cuda
@pytest.mark.parametrize("name", GRADIENT)
def test_same_settings_same_bytes_and_every_step_is_reported(name: str, on_card: Editor) -> None:
    x, quick = images(2), {key: 2 for key in ("timesteps", "edit_steps") if key in options(name)}
    steps: list[Step] = []
    one, two = (
        pipeline.immunize(x, on_card, prompt="a hat", method=name, steps=8, on_step=see, **quick)
        for see in (None, steps.append)
    )
    if name != "semantic_attack":  # the gradient of its resize of heat maps adds in no fixed order on CUDA
        assert torch.equal(one.image, two.image)
    assert [step.i for step in steps] == list(range(1, 9)) and [s.loss for s in one.history] == [s.loss for s in steps]
    assert all(step.preview is not None for step in steps) and len({float(s.preview.sum()) for s in steps}) == 8


def test_off_cuda_a_network_is_left_alone() -> None:
    network = torch.nn.Linear(2, 2)
    with graphs.replaying(network):
        assert "forward" not in vars(network)


@gpu
@needs_cuda
def test_an_edit_is_the_same_bytes_with_its_networks_calls_replayed(on_card: Editor, monkeypatch, caplog) -> None:
    for batch in (1, 3):
        x, cond = images(batch).cuda(), on_card.prepare(["add a hat"] * batch)
        replayed = on_card.edit(x, cond, seed=1, steps=6)
        assert "forward" not in vars(on_card.net) and "cannot be recorded" not in caplog.text
        with monkeypatch.context() as m:
            m.setattr(graphs, "WARM_UP", 10**6)
            assert torch.equal(on_card.edit(x, cond, seed=1, steps=6), replayed)


@gpu
@needs_cuda
def test_a_replayed_network_sees_what_changes_and_stays_what_it_was(caplog) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.weight = 0, torch.nn.Parameter(torch.ones(()))

        def forward(self, x, *, times=1, kept=None):
            self.calls += 1
            return {"sample": x * times * self.weight}

    network = Network().cuda()
    with torch.no_grad(), graphs.replaying(network):
        found = [float(network(torch.full((2,), float(k), device="cuda"), times=2)["sample"][0]) for k in range(7)]
        assert found == [2.0 * k for k in range(7)] and network.calls == 3, "two as they are, one recorded"
        assert float(network(torch.ones(2, device="cuda"), times=3)["sample"][0]) == 3
        state = object()
        for _ in range(5):
            network(torch.ones(2, device="cuda"), kept=state)
        assert network.calls == 9, "what may change unseen is never recorded"
    network(torch.ones(2, device="cuda"))
    assert network.calls == 10 and "forward" not in vars(network) and not caplog.text
    held = torch.cuda.memory_allocated()
    with pytest.raises(KeyError), torch.no_grad(), graphs.replaying(network):
        for _ in range(4):
            network(torch.ones(2, device="cuda"))
        raise KeyError
    gc.collect()
    assert "forward" not in vars(network) and torch.cuda.memory_allocated() <= held


@gpu
@needs_cuda
def test_what_cannot_be_recorded_runs_as_it_is_and_the_log_says_why(caplog) -> None:
    def reading(x: Image) -> Gradient:
        return Gradient(x.mean(dim=(1, 2, 3)) if float(x.sum()) > 0 else x[:, 0, 0, 0], torch.ones_like(x))

    replayed = graphs.replayed(Sampled(lambda step: (), reading))
    x = images(1).cuda()
    losses = [float(replayed(x * (1 - step / 10), step).loss) for step in range(6)]
    assert losses == pytest.approx([float(x.mean()) * (1 - step / 10) for step in range(6)])
    assert caplog.text.count("cannot be recorded") == 1
    assert float(torch.ones(3).cuda().sum()) == 3, "the device works on"


@gpu
@needs_cuda
def test_an_interrupt_comes_at_most_three_steps_late_and_leaves_no_memory(on_card: Editor) -> None:
    class Stop(Exception):
        pass

    x, calls = images(1).cuda(), []

    def stop(step: Step) -> None:
        if step.i == 5:
            raise Stop

    def once() -> None:
        grad_fn = graphs.replayed(build("sifm", on_card, x))
        counted = lambda x, step: calls.append(step) or grad_fn(x, step)  # noqa: E731
        with pytest.raises(Stop):
            pgd(x, counted, eps=0.03, alpha=2 / 255, steps=50, on_step=stop)

    once()
    assert len(calls) <= 5 + LATE <= 5 + 3
    gc.collect()
    held, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(20):
        once()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= held and torch.cuda.memory_reserved() <= reserved


@gpu
@needs_cuda
def test_an_overflow_on_the_card_is_refused() -> None:
    grad_fn = lambda x, step: Gradient(x.sum(dim=(1, 2, 3)) / (step < 3), torch.ones_like(x))  # noqa: E731
    with pytest.raises(Exception, match="loss of image 0, 1 of the batch is not finite at step 3"):
        pgd(images(2).cuda(), grad_fn, eps=0.03, alpha=2 / 255, steps=10)
