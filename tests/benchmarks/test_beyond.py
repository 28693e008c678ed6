"""python -m benchmarks.beyond: what a line of its log says; no protection draws what its picture is attacked with."""

from __future__ import annotations

import json

from benchmarks import beyond
from sifm_core.miniature import language
from sifm_core.verdicts import CLEAN

QUICK = '{"name": "%s", "method": "%s", "instruction": "", "loop": {"steps": 1}, "options": {"runs": 1}}'


def test_a_try_is_a_line_of_shares_and_is_not_made_twice(tmp_path, capsys) -> None:
    wanted = [QUICK % ("one", "sifm_plus"), "--out", str(tmp_path), "--images", "1", "--purify", "blur:1"]
    for _ in range(2):
        beyond.main(wanted)
    first, again = map(json.loads, (tmp_path / "tries.jsonl").read_text().splitlines())
    assert first == again, "seconds too: the second was looked up"
    assert (first["name"], first["instruction"], first["images"]) == ("one", "", 1)
    cells = [(figure["prompts"], figure["purifier"]) for figure in first["figures"]]
    assert cells == [(kind, chain) for chain in ("", "blur:1") for kind in ("original", "unseen")]
    assert all(0 <= figure["net"] <= figure["rate"] <= 1 for figure in first["figures"])
    assert "unseen    blur:1" in capsys.readouterr().out


def test_rows_are_named_or_spelled_and_pictures_say_what_they_are_attacked_with() -> None:
    clean, plus, quick = beyond.rows(["SIFM+", QUICK % ("a", "sifm_plus")])
    assert (clean.name, plus.method, plus.instruction, quick.loop) == (CLEAN, "sifm_plus", "", {"steps": 1})
    attacks = beyond.samples(2, 5001)
    assert len(attacks) == 12 and [a.kind for a in attacks[:6]] == ["original"] + ["unseen"] * 5
    edits = {language.parse(a.prompt) for a in attacks[:6]}
    assert len(edits) == 6 and {language.parse(text) for text in attacks[0].wordings} == edits
    assert set(attacks[0].wordings) >= {a.prompt for a in attacks[:6]}
