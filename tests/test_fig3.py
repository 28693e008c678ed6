"""The paper's Fig. 3 with a tiny random CLIP: the scores say who wins; without a model nothing is made up."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pil

import fakes
import tiny_clip
from sifm_core.fig3 import LINE, SIDE, Preference, edits_that_work, figure, preferences
from sifm_core.metrics.clip_score import clip_score
from sifm_core.store import Store
from sifm_core.types import Metric, Record, Verdict

PAIRS = [(fakes.images(1, (40, 60), i)[0], fakes.images(1, (40, 60), i + 9)[0], "a cat") for i in range(6)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


def test_the_higher_score_is_preferred(clip_folder):
    found = preferences(PAIRS, model=clip_folder)
    for (unedited, edited, text), one in zip(PAIRS, found, strict=True):
        scores = [clip_score(x[None], [text], model=clip_folder)[0].value for x in (unedited, edited)]
        assert [one.unedited.value, one.edited.value] == scores
        assert one.prefers_unedited is (scores[0] > scores[1])
    assert {one.prefers_unedited for one in found} == {True, False}, "pairs that a constant could not satisfy"


def test_without_a_model_nothing_is_preferred(tmp_path):
    (one, *_) = preferences(PAIRS, model=str(tmp_path / "nowhere"))
    assert one.prefers_unedited is None and "unavailable" in one.unedited.reason


@pytest.mark.parametrize("unedited, edited", [(0.3, 0.2), (0.2, 0.3)])
def test_the_figure_frames_what_is_preferred(unedited, edited):
    pair = (torch.full((3, 64, 64), 0.5), torch.full((3, 64, 64), 0.5), "a crown")
    one = Preference("a crown", Metric(unedited, "clip"), Metric(edited, "clip"))
    sheet = np.asarray(Pil.open(io.BytesIO(figure([pair, pair], [one, one]))).convert("RGB")).astype(int)
    assert sheet.shape == (2 * (SIDE + LINE), 2 * SIDE, 3)
    red = [np.ptp(sheet[SIDE // 2, column + 1]) > 100 for column in (0, SIDE)]
    assert red == [unedited > edited, edited > unedited]


def test_only_clean_edits_that_all_judges_accept_are_taken_from_a_run(tmp_path):
    def record(key, method, *failed):
        said = tuple(
            Verdict(f"j{i}", "ok", f, False) if f is not None else Verdict(f"j{i}", "blocked")
            for i, f in enumerate(failed)
        )
        return Record(key, key, "", key, "original", "e", method, 0, 0.0, source, source, edited, verdicts=said)

    with Store(tmp_path) as store:
        source, edited = (store.put_image(x) for x in fakes.images(2, 24))
        records = [
            record("works", "clean", False, False),
            record("fails", "clean", True, True),
            record("disputed", "clean", True, False),
            record("unclear", "clean", False, None),
            record("protected", "SIFM", False, False),
        ]
        strict = Verdict("miniature:renderer", "ok", True, False)
        records.append(replace(record("strict", "clean", False, False), verdicts=(*records[0].verdicts, strict)))
        records.append(replace(record("alone", "clean"), verdicts=(strict,)))
        assert [text for *_, text in edits_that_work(records, store)] == ["works", "strict"]
