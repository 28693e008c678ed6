"""What every kind of damage to a run ends in: what docs/benchmarks.md says, and nothing that was whole is lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from places import as_nobody
from sifm_core import cli
from sifm_core.pipeline import measure
from sifm_core.store import Store
from sifm_core.types import Record
from toy import ToyEditor, ToyJudge

GRID = """
title = "A small one"
rows = ["clean", "blocks 8 px", "PhotoGE"]

[grid]
editors = ["toy"]
judges = ["toy:a", "toy:b"]
images = 2
steps = 2
batch = 1
"""
RECORDS = 6
Damage = Callable[[Path], object]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """An editor and judges that answer at once, and one metric."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sifm_core.bench.work.load_editor", lambda name, **options: ToyEditor())
        patch.setattr("sifm_core.bench.work.load_judge", lambda spec: ToyJudge(spec, 0.5))
        patch.setattr("sifm_core.bench.work.measure", lambda x, y, names: measure(x, y, ("psnr",)))
        patch.setattr("sifm_core.bench.work._loaded", OrderedDict())
        yield


def flush(folder: Path) -> None:
    """Everything into the database itself, whoever has it open still."""
    db = sqlite3.connect(folder / "run.sqlite")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, ``run`` beside its ``small.toml``; not to be touched."""
    place = tmp_path_factory.mktemp("whole")
    (place / "small.toml").write_text(GRID)
    assert cli.main(["bench", "run", str(place / "small.toml"), "--out", str(place / "run")]) == 0
    flush(place / "run")
    return place


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be damaged; the working folder."""
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def records(folder: Path) -> list[Record]:
    """Without what differs between two runs of the same."""

    def timeless(record: Record) -> Record:
        info = {name: value for name, value in record.info.items() if name != "peak_memory"}
        verdicts = tuple(replace(verdict, latency=None) for verdict in record.verdicts)
        return replace(record, seconds={}, verdicts=verdicts, info=info)

    with Store(folder, create=False) as store:
        return [timeless(record) for record in store.records()]


def picture(folder: Path, kind: str, n: int = 0) -> Path:
    """The file of a record's picture, that of PhotoGE's unless it is the source's."""
    name = getattr([r for r in records(folder) if r.method == "PhotoGE"][n], kind)
    return folder / "images" / name[:2] / f"{name}.png"


def sql(statement: str, *values: object) -> Damage:
    def damage(folder: Path) -> None:
        db = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
        changed = db.execute(statement, values).rowcount
        db.close()
        assert changed, "else nothing was damaged"

    return damage


def write(name: str, content: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = picture(folder, name) if name in ("source", "protected", "edited") else folder / name
        path.write_bytes(content(path.read_bytes()))

    return damage


def swap(folder: Path) -> None:
    shutil.copy(picture(folder, "edited", 1), picture(folder, "edited"))


def pipe(folder: Path) -> None:
    path = picture(folder, "edited")
    path.unlink()
    os.mkfifo(path)


def a_folder(folder: Path) -> None:
    path = picture(folder, "edited")
    path.unlink()
    path.mkdir()


def unflushed(spoil: Callable[[Path], object]) -> Damage:
    """A run that was killed while its last transactions were in the log beside the database, which is then spoilt."""

    def damage(folder: Path) -> None:
        flush(folder)
        with Store(folder, create=False) as store:
            record = next(store.records())
            store.put_record(replace(record, prompt="the log's"))
            shutil.copytree(folder, folder.with_name("killed"))
        shutil.rmtree(folder)
        folder.with_name("killed").rename(folder)
        spoil(folder)

    return damage


def cut(part: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / part
        os.truncate(path, path.stat().st_size // 2)

    return spoil


@dataclass(frozen=True)
class Case:
    """A damage, how `bench report` and then `bench run` end (exit code, words), and the options the run needs."""

    damage: Damage
    report: tuple[int, str] = (0, "")
    run: tuple[int, str] = (0, "")
    options: tuple[str, ...] = ()
    mended: bool = True
    ordered: bool = True


ODD = json.dumps({"a": 1})
LEFT_OUT = (1, "1 record cannot be read and is left out")
NOT_A_RUN = "expected a run of `sifm bench run`, but"
LOST = (1, "run again into another folder")
KINDS: dict[str, Case] = {
    "a protected picture is gone": Case(lambda f: picture(f, "protected").unlink()),
    "an edit is gone": Case(lambda f: picture(f, "edited").unlink()),
    "a source is gone": Case(lambda f: picture(f, "source").unlink()),
    "all pictures are gone": Case(lambda f: shutil.rmtree(f / "images")),
    "a picture is cut": Case(write("edited", lambda data: data[: len(data) // 2])),
    "a picture is empty": Case(write("protected", lambda data: b"")),
    "a picture is damaged inside": Case(
        write("edited", lambda data: data[:60] + bytes(16) + data[76:]), options=("--verify",)
    ),
    "a picture is another one": Case(swap, options=("--verify",)),
    "a source is another picture": Case(lambda f: shutil.copy(picture(f, "edited"), picture(f, "source"))),
    "a picture is a pipe": Case(pipe),
    "a picture is a folder": Case(a_folder, run=(1, "cannot be written"), mended=False),
    "a record is no JSON": Case(sql("UPDATE records SET json = '{' WHERE id = 3"), LEFT_OUT),
    "a record is of another version": Case(
        sql("UPDATE records SET json = json_set(json, '$.verdicts[0].certainty', 1) WHERE id = 3"), LEFT_OUT
    ),
    "a record is a list": Case(sql("UPDATE records SET json = '[]' WHERE id = 3"), LEFT_OUT),
    "a record is under another key": Case(sql("UPDATE records SET key = 'x', json = '{}' WHERE id = 3"), LEFT_OUT),
    "a record is gone": Case(sql("DELETE FROM records WHERE id = 3"), ordered=False),
    "what was edited is no JSON": Case(sql("UPDATE documents SET json = '{' WHERE kind = 'edit'")),
    "what was protected is of another shape": Case(sql("UPDATE documents SET json = ? WHERE kind = 'immunize'", ODD)),
    "verdicts are of another version": Case(
        sql("UPDATE documents SET json = json_set(json, '$.certainty', 1) WHERE kind = 'verdict'")
    ),
    "metrics are of another shape": Case(sql("UPDATE documents SET json = ? WHERE kind = 'measure'", ODD)),
    "paces are of another shape": Case(sql("UPDATE documents SET json = ? WHERE kind = 'rate'", ODD)),
    "a model is of another shape": Case(sql("UPDATE documents SET json = '[]' WHERE kind = 'model'")),
    "the plan is of another shape": Case(sql("UPDATE documents SET json = '{\"counts\": 3}' WHERE key = 'plan'")),
    "the provenance is of another shape": Case(
        sql("UPDATE documents SET json = '{\"editors\": 3}' WHERE key = 'provenance'")
    ),
    "what it is of is damaged": Case(
        sql("UPDATE documents SET json = '[' WHERE key = 'config'"), (2, f"{NOT_A_RUN} what it is of is damaged")
    ),
    "what it is of is of another shape": Case(
        sql("UPDATE documents SET json = ? WHERE key = 'config'", ODD), (2, "unknown word in run")
    ),
    "it is of another benchmark": Case(
        sql("UPDATE documents SET json = json_set(json, '$.name', 'x') WHERE key = 'config'"),
        run=(2, "choose another --out"),
    ),
    "it is of another schema": Case(sql("PRAGMA user_version = 99"), (1, "has 99"), (1, "has 99"), mended=False),
    "the database is cut": Case(cut("run.sqlite"), LOST, LOST, mended=False),
    "the database is a text": Case(write("run.sqlite", lambda data: b"text " * 2000), LOST, LOST, mended=False),
    "the database is empty": Case(write("run.sqlite", lambda data: b""), (2, f"{NOT_A_RUN} it does not say of what")),
    "the database is gone": Case(lambda f: (f / "run.sqlite").unlink(), (1, "holds no run.sqlite")),
    "the log of a killed run is cut": Case(unflushed(cut("run.sqlite-wal"))),
    "the log of a killed run is gone": Case(unflushed(lambda f: (f / "run.sqlite-wal").unlink())),
    "the log's index is noise": Case(unflushed(write("run.sqlite-shm", lambda data: b"\xff" * len(data)))),
}


def ends(capsys: pytest.CaptureFixture[str], words: list[str], expected: tuple[int, str]) -> None:
    code = cli.main(words)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("sifm: ")]
    assert (code, len(lines)) == (expected[0], int(bool(expected[0]))), err
    assert expected[1] in err and "failed:" not in err and "Traceback" not in err and len("".join(lines)) < 1100


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_every_kind_of_damage_ends_as_documented(here: Path, whole: Path, capsys, case: Case):
    run = here / "run"
    case.damage(run)
    before = (run / "run.sqlite").read_bytes() if (run / "run.sqlite").exists() else b""
    ends(capsys, ["bench", "report", "run", "--out", "shown"], case.report)
    if case.report == LEFT_OUT:
        page, rows = Path("shown/report.html").read_text(), Path("all.jsonl")
        assert "1 record cannot be read and is left out" in page
        ends(capsys, ["bench", "export", "run", str(rows)], LEFT_OUT)
        assert len(rows.read_text().splitlines()) == RECORDS - 1, "the others are there"
    ends(capsys, ["bench", "run", "small.toml", "--out", "run", *case.options], case.run)
    if case.mended and not case.run[0]:
        made, first = records(run), records(whole / "run")
        assert made == first if case.ordered else sorted(made, key=repr) == sorted(first, key=repr)
        with Store(run, create=False) as store:
            assert all(store.has_image(name) for r in store.records() for name in (r.source, r.protected, r.edited))
        ends(capsys, ["bench", "report", "run"], (0, ""))
        ends(capsys, ["bench", "status", "run"], (0, ""))
    elif case.report[0] == 1:
        assert (run / "run.sqlite").read_bytes() == before, "nothing of what is left was touched"


def test_of_several_runs_a_damaged_one_costs_itself(here: Path, capsys):
    shutil.copytree("run", "cut"), shutil.copytree("run", "odd")
    cut("run.sqlite")(here / "cut")
    sql("UPDATE records SET json = '[]' WHERE id = 2")(here / "odd")
    ends(capsys, ["bench", "report", "run", "cut", "odd", "--out", "all"], (1, "cut cannot be read and is left out"))
    assert "PhotoGE" in Path("all/report.md").read_text()
    ends(capsys, ["bench", "report", "cut", "--out", "all"], LOST)
    ends(capsys, ["bench", "diff", "run", "odd"], LEFT_OUT)


@pytest.mark.parametrize("what", ["folder", "files", "both"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_may_only_be_read_is_shown_and_not_gone_on_with(here, open_place, capsys, what, killed):
    if killed:
        unflushed(lambda folder: None)(here / "run")
    shutil.copytree("run", open_place / "run")
    (open_place / "out").mkdir()
    (open_place / "out").chmod(0o777)
    run, out = str(open_place / "run"), str(open_place / "out")
    shown = [*(p for p in (open_place / "run").rglob("*") if what == "both" or p.is_file() == (what == "files"))]
    with as_nobody(*shown, *([open_place / "run"] if what != "files" else [])):
        ends(capsys, ["bench", "status", run], (0, ""))
        ends(capsys, ["bench", "report", run, "--out", f"{out}/shown"], (0, ""))
        ends(capsys, ["bench", "export", run, f"{out}/all.jsonl"], (0, ""))
        ends(capsys, ["bench", "diff", run, run], (0, ""))
        if what != "files":
            ends(capsys, ["bench", "report", run], (2, "cannot be written"))
        code = cli.main(["bench", "run", run, "--judge", "toy:c"])
        err = capsys.readouterr().err
        assert code == 1 and "failed:" not in err and len([x for x in err.splitlines() if x.startswith("sifm:")]) == 1
    rows = [json.loads(line) for line in Path(out, "all.jsonl").read_text().splitlines()]
    assert len(rows) == RECORDS and (rows[0]["prompt"] == "the log's") is killed, "the log's last words are read too"
    assert len(records(Path(run))) == RECORDS
