"""Twenty interrupts, from the first encoding to the last step of an edit: each leaves everything as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fakes
import packed_fakes
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.types import Editor

POINTS = 20


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


class Clock:
    """Stops the work at its n-th event."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.end = -1

    def tick(self, phase: str) -> None:
        self.phases.append(phase)
        if len(self.phases) == self.end:
            raise Stop


@pytest.fixture(params=["ip2p_folder", "sd3_folder", "ultraedit_folder", "flux_kontext", "qwen_image_edit"])
def editor(request: pytest.FixtureRequest, tmp_path: Path) -> Editor:
    made = getattr(packed_fakes, request.param, None)
    folder = made(tmp_path) if made else request.getfixturevalue(request.param)
    return load_editor(folder, device="cpu:0", size=32 if made else 16, steps=5, offload="text", checkpointing=True)


@pytest.fixture
def clock(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Ticks before and after whatever the work consists of."""
    clock = Clock()

    def watch(owner: object, name: str, phase: str) -> None:
        plain = getattr(owner, name)

        def watched(*args: object, **kwargs: object) -> object:
            clock.tick(f"before {phase}")
            out = plain(*args, **kwargs)
            clock.tick(f"after {phase}")
            return out

        monkeypatch.setattr(owner, name, watched)

    watch(editor.pipe.vae, "encode", "encode")
    watch(editor.pipe.vae, "decode", "decode")
    watch(editor.net, "forward", "network")
    watch(torch.autograd, "grad", "backward")
    watch(editor._readers["text_encoder"], "forward", "text")
    return clock


def work(editor: Editor, clock: Clock) -> None:
    """Everything that adds hooks, swaps processors, replaces schedulers or moves networks."""
    editor._prompts.clear()
    picture, tick = fakes.images(1, 24), lambda step: clock.tick(step.phase)
    settings = {"prompt": "a b", "steps": 2, "on_step": tick}
    pipeline.immunize(picture, editor, timesteps=2, eot=("jpeg:75",), **settings)
    pipeline.immunize(picture, editor, method="semantic_attack", timesteps=1, **settings)
    pipeline.edit(picture, editor, prompt="a b", on_step=tick)


def state(editor: Editor) -> list[object]:
    networks = [*(p for p in editor.pipe.components.values() if isinstance(p, nn.Module)), *editor._readers.values()]
    modules = [module for network in networks for module in network.modules()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return [
        [len(getattr(module, name)) for module in modules for name in hooks],
        [module.training for module in modules],
        {name: id(processor) for name, processor in editor.net.attn_processors.items()},
        [(p.dtype, p.device, p.requires_grad, p.grad is None) for p in parameters],
        {name: type(part) for name, part in editor.pipe.components.items()},
        (id(editor.pipe.scheduler), dict(editor.pipe.scheduler.config), editor.pipe.scheduler.timesteps.tolist()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist()),
    ]


@pytest.fixture
def young() -> Iterator[None]:
    """The collector looks at what this test made alone, not at all that is imported, which takes a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def tensors() -> int:
    gc.collect()
    return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())


@pytest.mark.usefixtures("young")
def test_twenty_interrupts_leave_nothing_behind(editor: Editor, clock: Clock) -> None:
    work(editor, clock)
    events = clock.phases
    kinds = {"before text", "before encode", "before network", "before backward", "immunize", "edit", "before decode"}
    assert kinds <= set(events) and len(events) > POINTS
    stops = [1 + round(k * (len(events) - 1) / (POINTS - 1)) for k in range(POINTS)]
    before, held, stopped = state(editor), None, set()
    for clock.end in stops:
        clock.phases = []
        with pytest.raises(Stop):
            work(editor, clock)
        stopped.add(clock.phases[-1])
        assert state(editor) == before, f"after a stop at {clock.phases[-1]}"
        clock.phases = []
        editor._prompts.clear()
        held = tensors() if held is None else held
        assert tensors() <= held, f"leaked at a stop {clock.end} of {len(events)}"
    assert len(stopped) >= 6, stopped
    clock.end, clock.phases = -1, []
    work(editor, clock)
    assert clock.phases == events, "and everything still works as before"
