"""Does it hold: green only with evidence, red where it does not, amber where nobody can tell, no light unjudged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fakes import images
from sifm_core import cli, holding, holds
from sifm_core.certificate import add
from sifm_core.errors import ImageError, InputError
from sifm_core.holding import AS_IT_IS, SHOWN, Way, decided, forecast, known_uploads
from sifm_core.images import resize, save_png
from sifm_core.miniature import benchmark
from sifm_core.protection import STRENGTHS
from sifm_core.report.holds import page
from sifm_core.types import Step
from sifm_core.verdicts import TRUTH, Evidence, Verdict, light
from toy import ToyEditor

PROMPTS = ("make it night", "add a hat", "as a watercolour", "in snow", "remove the sky", "paint it red <b>")


class Steady(ToyEditor):
    """Halves the picture's values and adds the instruction's own grey."""

    name = "steady"

    def edit(self, x: Tensor, cond: Tensor, *, seed, on_step=None) -> Tensor:
        return 0.5 * x + 0.4 * cond


class Knowing:
    """Knows what :class:`Steady` should make of a picture; an edit failed whose mean, or any pixel, is not that."""

    def __init__(self, any_pixel: bool = False, always: bool | None = None, name: str = "knowing") -> None:
        self.name, self.any_pixel, self.always = name, any_pixel, always

    def judge(self, cases, *, on_step=None) -> list[Verdict]:
        found = []
        for case in cases:
            off = case.edited - (0.5 * case.source + 0.4 * ToyEditor().prepare([case.prompt])[0])
            failed = float(off.abs().max()) > 0.003 if self.any_pixel else abs(float(off.mean())) > 0.003
            said = failed if self.always is None else self.always
            found.append(Verdict(self.name, "ok", said, False))
        return found


class Silent(Knowing):
    def judge(self, cases, *, on_step=None) -> list[Verdict]:
        return [Verdict(self.name, "refused")] * len(cases)


SOURCE = (images(1, 48) * 0.6 + 0.2).mul(255).round().div(255)
PROTECTED = (SOURCE + 5 / 255).mul(255).round().div(255)


def test(image: Tensor = PROTECTED, judge=None, **how):
    given = {"source": SOURCE, "instructions": PROMPTS, "seeds": (1, 2), "judges": [judge or Knowing()]}
    return holds(image, how.pop("editor", None) or Steady(), **given | {"purifiers": ["blur:0.5"]} | how)


test.__test__ = False


def test_what_survives_everything_is_green_and_what_is_not_protected_is_red() -> None:
    green, red = test(), test(SOURCE)
    assert green.light == "green" and red.light == "red"
    assert all(row.rate.rate == 1 and row.rate.n == 12 and row.floor.rate == 0 for row in green.rows)
    assert green.noise.rate == 0 and green.change == pytest.approx(5 / 255)
    assert all(row.rate.rate == 0 for row in red.rows)
    assert "Green" in next(green.words()) and "Red" in next(red.words())


def test_noise_in_place_of_a_protection_is_red() -> None:
    signs = torch.rand(SOURCE.shape, generator=torch.Generator().manual_seed(7)).sub(0.5).sign()
    assert test(SOURCE + 5 / 255 * signs).light == "red"


def test_without_the_original_nothing_is_green() -> None:
    found = test(judge=Knowing(always=True), source=None)
    assert found.light == "amber" and all(row.rate.rate == 1 for row in found.rows) and found.noise is None
    assert any("Without the original" in sentence for sentence in found.words())
    assert test(SOURCE, source=None).light == "red"


def test_a_judge_that_says_failed_of_everything_makes_nothing_green() -> None:
    found = test(judge=Knowing(always=True))
    assert found.light == "amber" and found.calibrations[0].specificity["success"].value == 0
    assert any("8 edits that work on the original, and there are 0" in sentence for sentence in found.words())


class Half(Steady):
    """Does nothing of what half of the instructions ask."""

    def edit(self, x: Tensor, cond: Tensor, *, seed, on_step=None) -> Tensor:
        unable = torch.tensor([float(ToyEditor().prepare([p])[0].mean()) for p in MANY[::2]])
        able = (cond.flatten(1).mean(1)[:, None] - unable).abs().amin(1) > 1e-6
        return torch.where(able[:, None, None, None], super().edit(x, cond, seed=seed), x)


MANY = tuple(f"paint it in shade {letter}" for letter in "abcdefghijklmnopqrstuvwx")


def test_an_editor_that_often_fails_by_itself_leaves_green_possible() -> None:
    """No judge may clear more of its clean edits than work, which says nothing against the judge."""
    given = {"editor": Half(), "instructions": MANY, "seeds": [1], "uploads": ()}
    found = test(**given)
    assert found.calibrations[0].specificity["success"].value == 0.5 and found.rows[0].rate.n == 12
    assert found.light == "green" and test(SOURCE, **given).light == "red"


def test_a_judge_that_misses_failed_edits_shows_no_light_but_amber() -> None:
    found = test(SOURCE, judge=Knowing(always=False))
    assert found.rows[0].rate.high < 0.5 and found.light == "amber"
    assert any("too little" in sentence for sentence in found.words())


def test_amber_says_what_green_would_take() -> None:
    found = test(seeds=[1])
    assert found.light == "amber"
    assert "For green it takes as it is: 8 edits that work on the original, and there are 6." in found.words()
    assert not any("For green" in sentence for sentence in test().words())


def test_by_default_each_of_sixteen_instructions_is_tried_once(capsys) -> None:
    assert (holding.INSTRUCTIONS, list(holding.SEEDS)) == (16, [1])
    assert cli.main(["holds", "--help"]) == 0
    said = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    assert re.search(r"--drawn N .*\[default: 16\]", said) and re.search(r"--seeds N .*\[default: 1\]", said)
    item = benchmark.load(1)[0].image[None]
    given = {"uploads": (), "purifiers": (), "judges": ()}
    assert forecast(item, "miniature-ip2p", **given)[0] == 16
    assert forecast(item, "miniature-ip2p", drawn=3, **given)[0] == 3


def test_where_noise_does_the_same_it_is_no_protection() -> None:
    found = test(judge=Knowing(any_pixel=True))
    assert found.rows[0].rate.rate == 1 and found.noise.rate == 1 and found.light == "amber"


def test_a_judge_without_an_answer_leaves_it_amber_and_is_counted() -> None:
    found = test(judge=Silent())
    assert found.light == "amber" and all(row.rate.rate is None for row in found.rows)


def test_two_judges_have_to_agree() -> None:
    found = holds(
        PROTECTED,
        Steady(),
        source=SOURCE,
        instructions=PROMPTS,
        judges=[Knowing(), Knowing(always=False, name="blind")],
        purifiers=(),
        uploads=(),
    )
    assert found.light == "amber" and found.rows[0].rate.rate == 0 and len(found.attacks[0].verdicts) == 2


def test_too_few_edits_are_never_green() -> None:
    assert test(instructions=PROMPTS[:2], seeds=[1]).light == "amber"


def test_one_instruction_that_gets_through_is_red_and_one_that_does_not_is_amber_with_the_reason() -> None:
    given = {"instructions": PROMPTS[:1], "seeds": range(1, 13)}
    assert test(SOURCE, **given).light == "red"
    found = test(**given)
    assert found.light == "amber" and found.rows[0].rate.rate == 1
    assert any("One instruction" in sentence for sentence in found.words())
    assert not any("One instruction" in sentence for sentence in test().words())


def test_where_one_instruction_alone_works_on_the_original_it_may_be_red_and_is_never_green() -> None:
    class Toy(Steady):
        toy = 64

    class One(Knowing):
        def judge(self, cases, *, on_step=None):
            said = zip(super().judge(cases), cases, strict=True)
            return [replace(v, semantic_mismatch=v.semantic_mismatch or c.prompt != PROMPTS[0]) for v, c in said]

    given = {"instructions": PROMPTS[:3], "seeds": range(1, 13), "uploads": (), "purifiers": ()}
    given |= {"source": SOURCE, "judges": [One(name=TRUTH)]}
    held, through = holds(PROTECTED, Toy(), **given), holds(SOURCE, Toy(), **given)
    assert held.rows[0].rate.rate == 1 and held.rows[0].rate.n == 12 and held.noise.rate == 0
    assert (held.light, through.light) == ("amber", "red")


def test_a_green_light_does_not_promise_that_every_edit_failed() -> None:
    assert "most edits fail that work on the original" in next(test().words())


def test_noise_survives_where_the_editor_scales_a_large_picture_down() -> None:
    class Half(Steady):
        def work_size(self, height, width):
            return 32, 32

    x = torch.full((1, 3, 256, 256), 0.5)
    seen = []

    class Watching(Half):
        def edit(self, x, cond, *, seed, on_step=None):
            seen.append(float(x.std()))
            return super().edit(x, cond, seed=seed)

    found = holds(x + 8 / 255, Watching(), source=x, instructions=["a"], seeds=[1], uploads=(), purifiers=())
    assert [attack.kind for attack in found.attacks] == ["protected", "original", "noise"]
    assert seen[0] < 1 / 255 and seen[1] < 1 / 255 and seen[2] > 5 / 255


def test_without_judges_there_is_no_light_but_the_pictures() -> None:
    found = holds(PROTECTED, Steady(), source=SOURCE, instructions=PROMPTS[:2], purifiers=())
    assert found.light is None and len(found.attacks) == 2 * (2 * 4 + 1)
    assert "nobody judged" in next(found.words()) and page(found).count("data:image/png") >= 16


def test_unjudged_the_page_shows_every_way_of_an_instruction_and_says_what_it_leaves_out() -> None:
    found = holds(PROTECTED, Steady(), source=SOURCE, instructions=PROMPTS, seeds=[1])
    first = [attack for attack in found.attacks if attack.kind == "protected"][: len(found.ways)]
    assert {attack.instruction for attack in first} == {PROMPTS[0]}
    assert [attack.way for attack in first] == [way.name for way in found.ways]
    text = page(found, most=len(found.ways))
    assert all(f"{way.name}</small>" in text for way in found.ways) and "30 more edits were tried" in text
    assert "not shown" not in page(found, most=36)


def test_what_got_through_comes_first_and_the_weakest_row() -> None:
    """Blur takes this change away: the picture's mean is brought back by it."""

    class Undone(Steady):
        def edit(self, x, cond, *, seed, on_step=None):
            taken = float(x.std()) < spread and float(x.mean()) > middle
            return super().edit(x - 5 / 255 if taken else x, cond, seed=seed)

    spread, middle = float(PROTECTED.std()) * 0.999, float(SOURCE.mean()) + 0.01
    given = {"source": SOURCE, "instructions": PROMPTS, "judges": [Knowing()], "uploads": (), "purifiers": ["blur:3"]}
    found = holds(PROTECTED, Undone(), **given)
    assert found.rows[0].way == "blur:3" and found.rows[-1].way == AS_IT_IS
    assert next(a.way for a in found.attacks if a.kind == "protected") == "blur:3"


def test_progress_and_forecast_count_the_edits() -> None:
    steps: list[Step] = []
    found = test(on_step=steps.append, seeds=[1])
    edits, seconds = forecast(
        PROTECTED, Steady(), source=SOURCE, instructions=PROMPTS, purifiers=["blur:0.5"], seeds=[1]
    )
    assert steps[-1].i == steps[-1].n == len(found.attacks) == edits == 6 * (2 * 5 + 1) and seconds > 0


def test_an_upload_scales_down_and_saves_as_jpeg() -> None:
    x = images(1, 64)
    small = Way("feed", side=32, quality=50)(x, Steady())
    assert small.shape[-2:] == (32, 32) and torch.equal((small * 255).round() / 255, small)
    assert torch.equal(Way(AS_IT_IS)(x, Steady()), x)
    assert not torch.equal(Way("feed", side=64, quality=50)(x, Steady()), x)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", holding._uploads()["read"]) and len(known_uploads()) >= 3


def test_a_long_and_narrow_picture_stays_large_enough_for_an_editor() -> None:
    class Flat(Steady):
        def work_size(self, height, width):
            return 8, 400

    for editor in (Steady(), Flat()):
        small = Way("feed", side=400, quality=75)(resize(images(1, 16), (16, 800)), editor)
        assert small.shape[-2:] == (16, 400)
    long = resize(images(1, 16), (16, 800))
    assert len(holds(long, Flat(), instructions=["a"], seeds=[1], purifiers=()).attacks) == 4


def test_kept_pictures_are_small() -> None:
    wide = images(1, 400)
    found = holds(wide, Steady(), instructions=["a"], seeds=[1], uploads=(), purifiers=())
    assert max(found.attacks[0].edited.shape[-2:]) == SHOWN


def test_the_miniatures_judges_are_refused_for_other_pictures() -> None:
    with pytest.raises(InputError, match="miniature"):
        test(judge="miniature:conv")


def test_wrong_arguments_are_refused_before_any_work() -> None:
    for wrong, message in (
        ({"source": images(1, 32)}, "size"),
        ({"instructions": [" "]}, "instruction"),
        ({"seeds": []}, "seed"),
        ({"purifiers": ["jpeg:0"]}, "quality"),
    ):
        with pytest.raises((InputError, ImageError), match=message):
            test(**wrong)


def evidence(low, high, pairs=12, noise=0.0) -> Evidence:
    return Evidence("as it is", low, high, pairs, noise)


@pytest.mark.parametrize(
    "attacks, how, expected",
    [
        ([evidence(0.6, 0.9)], {}, "green"),
        ([evidence(0.6, 0.9), evidence(0.4, 0.8)], {}, "amber"),
        ([evidence(0.6, 0.9), evidence(0.1, 0.49)], {}, "red"),
        ([evidence(0.6, 0.9), evidence(0.1, 0.49)], {"original": False}, "red"),
        ([evidence(0.6, 0.9), evidence(0.1, 0.49)], {"trusted": None}, "red"),
        ([evidence(0.6, 0.9), evidence(0.1, 0.49)], {"trusted": False}, "amber"),
        ([evidence(0.6, 0.9, 7)], {}, "amber"),
        ([evidence(None, None, 0)], {}, "amber"),
        ([evidence(0.61, 0.9, noise=0.2)], {}, "green"),
        ([evidence(0.59, 0.9, noise=0.2)], {}, "amber"),
        ([evidence(0.99, 1.0, noise=1.0)], {}, "amber"),
        ([evidence(0.6, 0.9)], {"trusted": False}, "amber"),
        ([evidence(0.6, 0.9)], {"trusted": None}, "amber"),
        ([evidence(0.6, 0.9)], {"original": False}, "amber"),
        ([], {}, "amber"),
    ],
)
def test_the_rule(attacks, how, expected) -> None:
    shown, lacking = light(attacks, **{"original": True, "trusted": True} | how)
    assert shown == expected and bool(lacking) == (expected != "green")


def test_the_page_needs_nothing_else_and_shows_text_as_text() -> None:
    text = page(test(), "<i>x</i>.png", most=60)
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text).replace("http-equiv", "")
    assert "paint it red &lt;b&gt;" in text and "<i>x</i>" not in text and 'class="green"' in text
    assert decided(test()).light == "green"


def test_nothing_typed_is_in_what_a_certificate_gets() -> None:
    (entry,) = test().tested
    assert entry["editor"] == "an editor of the family toy" and entry["outcome"].startswith("green")
    assert not any(prompt in json.dumps(entry) for prompt in PROMPTS)


def test_the_path_of_an_editors_folder_stands_nowhere() -> None:
    class Folder(Steady):
        name = "/home/anna/models/instruct-pix2pix"

    found = holds(PROTECTED, Folder(), source=SOURCE, instructions=PROMPTS, judges=[Knowing()], purifiers=())
    (entry,) = found.tested
    assert "anna" not in page(found) + json.dumps([entry, found.editors]) + "".join(found.words())
    assert entry["editor"] == "an editor of the family toy" and found.rows[0].editor == "instruct-pix2pix (ffffff)"


def test_the_command_names_no_judges_that_it_does_not_ask_and_drops_no_option(tmp_path, capsys) -> None:
    assert cli.main(["holds", "--help"]) == 0
    out = capsys.readouterr().out
    assert "miniature:conv" not in out and "you look" in " ".join(re.sub(r"[│|]", " ", out).split())
    save_png(benchmark.load(1)[0].image, tmp_path / "a.png")
    assert cli.main(["holds", str(tmp_path / "a.png"), "--against", "miniature-ip2p", "--max-cost", "1"]) == 2
    assert "--max-cost" in capsys.readouterr().err


def test_the_command_says_how_long_it_takes_and_writes_a_page(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    item = benchmark.load(1)[0]
    save_png(item.image, "drawing.png")
    words = ["--instruction", item.instruction, "--instruction", item.unseen[0], "--seeds", "1"]
    assert cli.main(["holds", "drawing.png", "--source", "drawing.png", "--against", "miniature-ip2p", *words]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"\d+ edits, about \d+ min", err) and "Amber" in out
    text = Path("drawing.holds.html").read_text()
    assert "Does it hold?" in text and item.instruction in text and str(tmp_path) not in text


def test_unjudged_or_as_a_demonstration_a_test_says_nothing_in_a_certificate() -> None:
    assert replace(test(), light=None).tested == [] == replace(test(), demonstration=True).tested


def test_without_an_editor_the_command_says_how_one_comes_here(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sifm_core.protection.at_hand", list)
    save_png(SOURCE, tmp_path / "a.png")
    assert cli.main(["holds", str(tmp_path / "a.png")]) == 1
    err = capsys.readouterr().err
    assert "--against instruct-pix2pix" in err and "--download" in err and "4.3 GB" in err


def test_a_certificate_gets_what_was_found_and_is_still_true(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    item = benchmark.load(1)[0]
    save_png(item.image, "a.png")
    monkeypatch.setitem(STRENGTHS, "strong", STRENGTHS["strong"]._replace(steps=2))
    assert cli.main(["protect", "a.png", "--against", "miniature-ip2p", "--strength", "strong"]) == 0
    assert "Whether it holds was not tested" in capsys.readouterr().out
    words = ["--against", "miniature-ip2p", "--instruction", item.instruction]
    assert cli.main(["holds", "a_protected.png", "--source", "a.png", *words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    picture, file, page = (Path(f"a_protected.{kind}") for kind in ("png", "certificate.json", "certificate.html"))
    assert shown["certificate"] == str(page) == str(add(shown["tested"], picture))
    about = json.loads(file.read_text())
    assert [test["judges"] for test in about["tested"]] == 2 * [list(holding.TOY_JUDGES)]
    assert not any(sentence.startswith("Whether it holds") for sentence in about["not_promised"])
    everything = file.read_text() + page.read_text()
    assert item.instruction not in everything and str(tmp_path) not in everything
    assert shown["light"] in everything and "Nothing yet" not in everything
    assert cli.main(["certificate", "a_protected.png", "--source", "a.png"]) == 0
    assert f"against miniature-ip2p (a toy): {shown['light']}" in capsys.readouterr().out
    assert add([], picture) is None
    save_png(item.image, picture)
    assert add(shown["tested"], picture) is None and json.loads(file.read_text()) == about
