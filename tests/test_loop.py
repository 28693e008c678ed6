"""The loop's settings: one list of them, which every door offers, and one check, which nothing gets past."""

import inspect
import json
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest
import typer

import fakes
from sifm_core import pipeline
from sifm_core.bench.grid import Grid, Row, Sample
from sifm_core.cli.app import app
from sifm_core.errors import InputError
from sifm_core.loop import LOOP, Loop, Schedule
from sifm_core.methods import configure, presets
from sifm_core.pgd import SCHEDULES, pgd

WRONG = [
    ({"eps": 0.001}, "8-bit level"),
    ({"eps": float("nan")}, "eps: expected a number"),
    ({"eps": [0.03]}, "eps: expected a number"),
    ({"steps": 2.0}, "steps: expected a whole number"),
    ({"steps": 10**9}, "at most 1,000,000"),
    ({"alpha": "2/255"}, "alpha: expected a number"),
    ({"ball": ["l2"]}, "unknown ball"),
    ({"schedule": {"cosine": 1}}, "unknown schedule"),
    ({"update": 7}, "unknown update"),
    ({"eot": 0.75}, "eot: expected transforms"),
    ({"eot": {"jpeg": 75}}, "eot: expected transforms"),
    ({"eot": ["jpeg:75", ""]}, "unknown transform ''"),
    ({"eot": [None]}, "unknown transform 'None'"),
    ({"eot": "jpeg:75, blurr:1"}, "did you mean blur"),
    ({"random_start": "no"}, "random_start: expected True"),
    ({"random_start": 0}, "random_start: expected True"),
]


def grid(row: dict) -> Grid:
    picture = fakes.images()[0]
    return Grid([Sample("a", picture, "a", "a")], ["miniature-ip2p"], [], [Row("clean"), Row("x", "sifm", loop=row)])


@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=str)
def test_a_value_that_no_loop_runs_with_is_refused_at_every_door_in_the_same_words(wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        Loop(**wrong)
    for door in (
        lambda: pipeline.immunize(fakes.images(), "never loaded", prompt="a", **wrong),
        lambda: pipeline.immunize(fakes.images(), "never loaded", prompt="a", method="random_noise", **wrong),
        lambda: grid(wrong),
    ):
        with pytest.raises(InputError) as again:
            door()
        assert str(again.value) == str(refused.value)


def test_a_preset_that_is_no_name_is_refused_too() -> None:
    with pytest.raises(InputError, match="unknown preset of sifm"):
        grid({"preset": ["paper"]})


@pytest.mark.parametrize("name", LOOP)
def test_every_door_offers_every_setting(name: str) -> None:
    assert inspect.signature(pipeline.immunize).parameters[name].default is None
    params = {param.name: param for param in typer.main.get_command(app).commands["immunize"].params}
    assert params[name].opts == ["--" + name.replace("_", "-")] and params[name].default is None
    assert params[name].help.split(";")[0] == LOOP[name].doc.split(";")[0]
    grid({name: LOOP[name].default})
    assert name == "eot" or name in inspect.signature(pgd).parameters


def test_what_runs_is_what_was_said_over_the_preset() -> None:
    paper = presets("photoguard_encoder")["paper"]
    loop, options = configure("photoguard_encoder", "paper", {"alpha": 1 / 255, "eot": "jpeg:75, none", "steps": None})
    assert (loop.alpha, loop.schedule, loop.steps, loop.eot) == (1 / 255, "linear", paper["steps"], ("jpeg:75", "none"))
    assert options == {}
    assert configure("sifm", "equal_budget", {"lam": 2.0}) == (Loop(), {"lam": 2.0})
    row = Row("x", "photoguard_encoder", loop={"preset": "paper", "steps": 7, "ball": "l2"})
    assert row.resolved(grid({})) == Loop(**paper | {"steps": 7, "ball": "l2"})


def test_equal_settings_are_equal_loops_however_they_are_spelled() -> None:
    assert (
        Loop(eps=1, eot="none,jpeg:75")
        == Loop(eps=1.0, eot=["none", " jpeg:75 "])
        == Loop(eps=1, eot=("none,jpeg:75",))
    )
    assert len({Loop(eot="none"), Loop(eot=["none"]), Loop()}) == 2
    assert json.loads(json.dumps(Loop(eot="none").plain())) == Loop(eot="none").plain()
    with pytest.raises(FrozenInstanceError):
        Loop().eps = 1.0


def test_a_loop_says_a_sentence_about_each_setting_and_pgd_knows_each_schedule() -> None:
    assert [field.name for field in fields(Loop)] == list(LOOP) and list(SCHEDULES) == list(get_args(Schedule))
    assert all(option.doc.endswith(".") for option in LOOP.values())
