"""python -m benchmarks.ahead: rates on common attacks, exact tests by picture, Holm over all that are printed."""

from __future__ import annotations

import json

import pytest

from benchmarks import ahead
from sifm_core.stats import holm, mcnemar
from sifm_core.store import Store
from sifm_core.types import Record, Verdict


def record(method: str, image: int, failed: bool | None, editor: str = "a", purifier: str = "") -> Record:
    state = "unreachable" if failed is None else "ok"
    said = tuple(Verdict(f"judge:{k}", state, semantic_mismatch=failed, perceptual_degradation=False) for k in "xy")
    info = {"protected_on": editor, "purifier": purifier}
    key = f"{method}/{image}/{editor}/{purifier}"
    return Record(
        key, str(image), "", "red", "original", editor, method, 0, 0.03, "s", "p", "e", verdicts=said, info=info
    )


RECORDS = [
    *(record("SIFM+", i, i < 18) for i in range(20)),
    *(record("SIFM", i, i < 8 if i != 19 else None) for i in range(20)),
    *(record("noise", i, i == 19) for i in range(15, 25)),
    *(record(name, i, i < n, "b", "jpeg:75") for name, n in (("SIFM+", 6), ("SIFM", 5)) for i in range(20)),
    *(record("clean", i, False) for i in range(20)),
]


def test_rows_are_compared_where_both_have_an_answer_and_p_is_corrected_over_all() -> None:
    found = {(test.column, test.over): test for test in ahead.tests(RECORDS, "SIFM+")}
    assert list(found) == [("a, original", "SIFM"), ("a, original", "noise"), ("b, jpeg:75, original", "SIFM")]
    sifm, noise, jpeg = found.values()
    assert (sifm.pairs, sifm.rate, sifm.other) == (19, 18 / 19, 8 / 19), "the unclear pair is left out"
    assert (noise.pairs, noise.rate, noise.other) == (5, 3 / 5, 1 / 5), "only what both were attacked with"
    raw = [
        mcnemar([i < 18 for i in range(19)], [i < 8 for i in range(19)]).p,
        mcnemar([True] * 3 + [False] * 2, [False] * 4 + [True]).p,
        1.0,
    ]
    assert [test.p for test in (sifm, noise, jpeg)] == pytest.approx(holm(raw))
    assert [test.ahead for test in found.values()] == [True, False, False]
    assert sifm.low > 0 > noise.low
    behind = ahead.tests(RECORDS, "SIFM", over=["SIFM+"])
    assert not any(test.ahead for test in behind) and len(behind) == 2


def test_a_row_may_lie_in_several_runs(tmp_path, capsys) -> None:
    for name, some in (("one", RECORDS[:20]), ("two", RECORDS[20:])):
        with Store(tmp_path / name) as store:
            for each in some:
                store.put_record(each)
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    ahead.main([*runs, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [test["ahead"] for test in printed] == [True, False, False]
    ahead.main([*runs, "--over", "SIFM"])
    assert "| a, original | SIFM | 19 | 95% | 42% | +53 (" in capsys.readouterr().out
