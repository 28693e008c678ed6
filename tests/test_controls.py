"""Gold controls from an editor's own edits, and what is kept of them beside a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fakes
from sifm_core.bench import Sample
from sifm_core.controls import controls, keep, kept
from sifm_core.errors import InputError
from sifm_core.judges.calibration import calibrate
from sifm_core.pipeline import edit
from sifm_core.stats import wilson
from sifm_core.store import Store
from toy import ToyEditor, ToyJudge


def sample(i, prompt, size=24):
    return Sample(str(i), fakes.images(1, size, i)[0], prompt, prompt)


SAMPLES = [sample(0, "night"), sample(0, "a hat"), sample(1, "day", 32), sample(2, "night"), sample(1, "snow", 32)]


def test_controls_are_the_editors_own_edits_in_order():
    editor = ToyEditor()
    golds = controls(SAMPLES, editor, seed=3, batch=2)
    assert [gold.kind for gold in golds] == ["clean edit", "unedited", "noise", "wrong instruction"] * 3
    for i, (image, prompt, other) in enumerate([(0, "night", "a hat"), (1, "day", "snow"), (2, "night", "day")]):
        clean, same, noise, wrong = (gold.case for gold in golds[4 * i : 4 * i + 4])
        x = next(s.image for s in SAMPLES if s.id == str(image))[None]
        assert {case.prompt for case in (clean, same, noise, wrong)} == {prompt}
        assert torch.equal(clean.edited, edit(x, editor, prompt=prompt, seed=3)[0])
        assert torch.equal(wrong.edited, edit(x, editor, prompt=other, seed=3)[0])
        assert torch.equal(same.edited, x[0]) and all(torch.equal(c.source, x[0]) for c in (clean, noise, wrong))


def test_options_and_truth_arrive():
    class Truth:
        def check(self, edited):
            return True, False, "the editor failed by itself"

    (clean, *_) = controls([replace(SAMPLES[0], truth=Truth()), SAMPLES[1]], ToyEditor(), options={"strength": 0.0})
    assert clean.semantic_mismatch is True
    plain = controls(SAMPLES[:2], ToyEditor())[0]
    assert not torch.equal(clean.case.edited, plain.case.edited)


def test_a_single_instruction_is_refused():
    with pytest.raises(InputError, match="second instruction"):
        controls([SAMPLES[0], SAMPLES[3]], ToyEditor())


def test_what_was_found_is_kept_with_the_run(tmp_path):
    golds = controls(SAMPLES, ToyEditor())
    found = [calibrate(ToyJudge(name, threshold), golds) for name, threshold in (("low", 0.1), ("high", 0.9))]
    with Store(tmp_path) as store:
        for one in found:
            keep(store, one)
        again = kept(store, ["high", "unknown", "low"])
    assert list(again) == ["high", "low"] and list(again.values()) == found[::-1]
    assert again["low"].sentence() == found[0].sentence()
    assert "low on 12 gold controls: finds 100% (9/9, 95% " in found[0].sentence()
    assert "clears 0% (0/3" in found[0].sentence()
    assert again["low"].sensitivity["success"].low < wilson(9, 9).low, "three pictures, not nine"
