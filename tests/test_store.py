import csv
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from places import as_nobody
from sifm_core.errors import InputError, StoreError
from sifm_core.shapes import misfit
from sifm_core.store import Store, fingerprint
from sifm_core.types import Metric, Record, Verdict

ROOT = Path(__file__).parent.parent
RECORD = Record(
    key="k",
    image="img",
    category="portrait",
    prompt="make it “night” é\n",
    prompt_kind="original",
    editor="e",
    method="sifm",
    seed=2**40,
    eps=0.03,
    source="a" * 64,
    protected="b" * 64,
    edited="c" * 64,
    metrics={"psnr": Metric(21.1234567890625, "d"), "lpips": Metric(None, "d", "missing")},
    verdicts=(Verdict("j:1", "ok", True, False, 0.9, "because"), Verdict("j:2", "refused")),
    seconds={"edit": 0.1},
    info={"steps": [{"loss": 0.25}], "note": None},
)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "run") as store:
        yield store


def picture(seed=0, size=(24, 32)):
    return torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(seed)) / 255


def test_records_come_back_equal_after_reopening(tmp_path):
    with Store(tmp_path) as store:
        store.put_record(RECORD)
        store.put_record(replace(RECORD, key="k2"))
    with Store(tmp_path, create=False) as store:
        store.put_record(replace(RECORD, seed=1))  # same key: replaced, in its place
        assert list(store.records()) == [replace(RECORD, seed=1), replace(RECORD, key="k2")]


def test_records_stream_while_others_are_written(store):
    for i in range(5):
        store.put_record(replace(RECORD, key=str(i)))
    stream = store.records()
    assert next(stream).key == "0"
    store.put("verdict", "x", {"a": 1})
    assert [r.key for r in stream] == list("1234")


def test_documents(store):
    assert store.get("verdict", "x") is None
    store.put("verdict", "x", {"a": [1, 2.5, None, True, "ü"], "b": {"c": np.float32(0.5)}})
    store.put("edit", "x", {})
    assert store.get("verdict", "x") == {"a": [1, 2.5, None, True, "ü"], "b": {"c": 0.5}}
    store.put("verdict", "x", {"a": 2})
    assert store.get("verdict", "x") == {"a": 2}
    assert store.get("edit", "x") == {}


@pytest.mark.parametrize(
    "bad", [torch.zeros(1), float("nan"), math.inf, object(), {1: 2}, b"x", {1, 2}, np.zeros(2), Path(".")]
)
def test_only_plain_data_is_taken_and_the_place_is_named(store, bad):
    with pytest.raises(InputError, match=r"edit\[x\]\.a\[1\]: expected plain data"):
        store.put("edit", "x", {"a": [0, bad]})
    with pytest.raises(InputError, match=r"record\[k\]\.info\.x"):
        store.put_record(replace(RECORD, info={"x": bad}))
    with pytest.raises(InputError, match=r"fingerprint\.a"):
        fingerprint(a=bad)
    assert store.get("edit", "x") is None
    assert not list(store.records())


def test_fingerprint_is_stable_where_meaning_is_and_only_there():
    same = fingerprint(a=1, b={"x": 0.1, "y": (1, 2)}, c=2)
    assert same == fingerprint(c=2.0, b={"y": [1, 2.0], "x": np.float64(0.1)}, a=1)
    assert len(same) == 64
    parts = [{"a": v} for v in (1, True, "1", None, [1], [[1]], {"a": 1}, 1.5, -1, 0, "", [], {}, 0.1 + 0.2, 0.3)]
    assert len({fingerprint(**p) for p in parts}) == len(parts)
    assert fingerprint(a=-0.0) == fingerprint(a=0)
    assert fingerprint(a="1", b="") != fingerprint(a="", b="1")


def test_fingerprint_does_not_depend_on_the_process():
    code = "from sifm_core.store import fingerprint; print(fingerprint(eps=0.03, options={'b': [1, 2], 'a': 'x'}))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(options={"a": "x", "b": (1, 2)}, eps=0.03)


def test_pictures_are_stored_by_content(store):
    x = picture()
    name = store.put_image(x)
    assert torch.equal(store.get_image(name), x)
    assert store.put_image(x[0]) == name
    assert store.put_image(picture(1)) != name
    assert store.put_image(x.reshape(1, 3, 32, 24)) != name  # same bytes, other shape
    rounded = store.put_image((x + 0.3 / 255).clamp(0, 1))
    assert rounded == name
    assert len(list(store.folder.glob("images/*/*.png"))) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "other", "gone"])
def test_a_damaged_picture_is_never_taken_for_the_picture_and_can_be_put_again(store, damage):
    name, other = store.put_image(picture()), store.put_image(picture(1))
    path = next(store.folder.glob(f"images/*/{name}.png"))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "other":
        path.write_bytes(next(store.folder.glob(f"images/*/{other}.png")).read_bytes())
    else:
        path.unlink()
    assert not store.has_image(name)
    with pytest.raises(StoreError, match="run again"):
        store.get_image(name)
    assert store.put_image(picture()) == name
    assert torch.equal(store.get_image(name), picture())


@pytest.mark.parametrize("bad", ["", "x", "../" * 20 + "aaaa", "g" * 64])
def test_an_id_is_no_path(store, bad):
    with pytest.raises(StoreError, match="expected the id"):
        store.get_image(bad)


def test_exports(store, tmp_path):
    store.put_record(RECORD)
    store.put_record(replace(RECORD, key="k2", metrics={}, verdicts=()))
    store.export_jsonl(tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["k", "k2"]
    assert rows[0]["metrics"]["psnr"]["value"] == 21.1234567890625
    store.export_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["metric:psnr"] == "21.1234567890625"
    assert first["metric:lpips"] == ""
    assert (first["judge:j:1:semantic_mismatch"], first["judge:j:2:state"]) == ("True", "refused")
    assert json.loads(first["info"]) == {"steps": [{"loss": 0.25}], "note": None}
    assert second["metric:psnr"] == ""


def test_unusable_places(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        Store(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot hold a run"):
        Store(tmp_path / "file")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "run.sqlite").write_bytes(b"not a database, but long enough to be one" * 40)
    with pytest.raises(StoreError, match=r"run\.sqlite"):
        Store(tmp_path / "junk")
    with Store(tmp_path / "new"):
        pass
    with sqlite3.connect(tmp_path / "new" / "run.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="this run has 99"):
        Store(tmp_path / "new")


WRITER = """
import sys, torch
from dataclasses import asdict, replace
sys.path[:0] = [{tests!r}, {root!r}]
from test_store import RECORD, picture
from sifm_core.store import Store
with Store(sys.argv[1]) as store:
    print("open", flush=True)
    for i in range(int(sys.argv[3])):
        image = store.put_image(picture(hash(sys.argv[2]) % 1000 + i, (64, 64)))
        key = f"{{sys.argv[2]}}-{{i}}"
        store.put("edit", key, {{"image": image}})
        store.put_record(replace(RECORD, key=key, edited=image))
        print(key, flush=True)
""".format(tests=str(ROOT / "tests"), root=str(ROOT))


def writer(folder, name, count=10**9):
    env = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(count)], env=env, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_at_any_moment_loses_and_tears_nothing(tmp_path):
    rng, said = random.Random(0), []
    for turn in range(3):
        process = writer(tmp_path, f"w{turn}")
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.read().splitlines()
        process.wait()
        with Store(tmp_path, create=False) as store:
            records = {r.key: r for r in store.records()}
            assert set(said) <= set(records)
            assert len(records) <= len(said) + turn + 1  # at most the one in flight was written and not yet said
            for key, record in records.items():
                assert record == replace(RECORD, key=key, edited=record.edited)
                assert store.has_image(record.edited)
                assert store.get("edit", key) == {"image": record.edited}
            for path in store.folder.glob("images/*/*.png"):
                assert store.has_image(path.stem)
    assert len(said) > 3


def test_two_writers_at_once_are_safe(tmp_path):
    processes = [writer(tmp_path, name, 25) for name in ("a", "b")]
    said = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    with Store(tmp_path) as store:
        keys = [r.key for r in store.records()]
    assert sorted(keys) == sorted(f"{name}-{i}" for name in "ab" for i in range(25))
    assert all(len(lines) == 26 for lines in said)


def test_puts_together_are_all_or_none(store):
    with pytest.raises(KeyError), store.together():
        store.put("a", "1", {})
        store.put_record(RECORD)
        raise KeyError
    assert store.counts() == {"records": 0}
    with store.together():
        store.put("a", "1", {"x": 1})
        store.put_record(RECORD)
    assert store.counts() == {"a": 1, "records": 1}
    assert list(store.documents("a")) == [("1", {"x": 1})]
    store.remove("a", "1")
    store.remove_records()
    assert store.counts() == {"records": 0}


def test_a_torn_picture_does_not_seem_whole(store):
    name = store.put_image(torch.rand(3, 8, 8))
    path = next(store.folder.rglob(f"{name}.png"))
    assert store.seems_whole(name) and not store.seems_whole("0" * 64)
    for size in (path.stat().st_size - 1, 20, 3, 0):
        os.truncate(path, size)
        assert not store.seems_whole(name)


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path):
    for turn in range(60):
        with ThreadPoolExecutor(6) as pool:
            for store in list(pool.map(lambda _, turn=turn: Store(tmp_path / str(turn)), range(6))):
                store.close()


def put_raw(folder: Path, key: str, text: object) -> None:
    with sqlite3.connect(folder / "run.sqlite") as db:
        db.execute("INSERT OR REPLACE INTO records (key, json) VALUES (?, ?)", (key, text))


def changed(**changes: object) -> str:
    return json.dumps(asdict(replace(RECORD, key="odd")) | changes)


VERDICT, METRIC = asdict(Verdict("j:1", "ok", True, False)), asdict(Metric(1.0, "d"))
ODD_RECORDS = {
    "a list": "[]",
    "empty": "{}",
    "null": "null",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a blob": b"\xff\xfe",
    "a number": 7,
    "a field of another version": changed(verdicts=[VERDICT | {"certainty": 1}]),
    "a verdict of another kind": changed(verdicts=["yes"]),
    "a state that is none": changed(verdicts=[VERDICT | {"state": "maybe"}]),
    "an answer that is none": changed(verdicts=[VERDICT | {"semantic_mismatch": "yes"}]),
    "a metric of another kind": changed(metrics={"psnr": 3}),
    "a metric that is no number": changed(metrics={"psnr": METRIC | {"value": float("nan")}}),
    "a seed that is none": changed(seed=True),
    "seconds that are none": changed(seconds={"edit": "long"}),
    "a fidelity of another kind": changed(info={"fidelity": []}),
    "an infinite memory": changed(info={"peak_memory": METRIC | {"value": float("inf")}}),
}


@pytest.mark.parametrize("text", ODD_RECORDS.values(), ids=ODD_RECORDS)
def test_one_odd_record_costs_itself_and_is_named(store, tmp_path, text):
    store.put_record(RECORD)
    put_raw(store.folder, "odd", text)
    store.put_record(replace(RECORD, key="k2"))
    assert [record.key for record in store.records()] == ["k", "k2"]
    assert list(store.unreadable) == ["record odd"]
    assert (
        store.missing().startswith("1 record cannot be read and is left out: record odd") and len(store.missing()) < 300
    )
    store.export_jsonl(tmp_path / "all.jsonl")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 2
    store.put_record(replace(RECORD, key="odd"))
    assert len(list(store.records())) == 3 and store.missing() == ""


def test_a_record_without_the_fields_of_later_versions_has_their_defaults(store):
    old = asdict(replace(RECORD, key="old", verdicts=(), info={}))
    del old["seconds"], old["info"], old["metrics"]["psnr"]["reason"]
    old["verdicts"] = [{"judge": "j:1", "state": "ok", "semantic_mismatch": True, "perceptual_degradation": False}]
    put_raw(store.folder, "old", json.dumps(old))
    (record,), (row,) = store.records(), store.rows()
    assert record.verdicts == (Verdict("j:1", "ok", True, False),) and record.seconds == {}
    assert row["verdicts"][0]["cost"] is None and row["metrics"]["psnr"]["reason"] == "" and store.missing() == ""


def test_a_document_of_another_shape_is_none(store):
    store.put("rate", "edit", {"units": "many", "seconds": 1.0})
    store.put("rate", "judge", {"units": 2, "seconds": 1.0})
    shape = dict[str, float]
    assert store.get("rate", "edit", shape) is None and dict(store.documents("rate", shape)) == {
        "judge": {"units": 2, "seconds": 1.0}
    }
    assert store.unreadable == {"rate edit": "units: expected a number, got 'many'"}
    with sqlite3.connect(store.folder / "run.sqlite") as db:
        db.execute("UPDATE documents SET json = '[1]' WHERE key = 'judge'")
    assert store.get("rate", "judge") is None, "no object"


def test_texts_that_are_no_unicode_come_back_escaped(store):
    torn = replace(RECORD, prompt="a\ud800b \U0001f600", verdicts=(Verdict("j:1", "ok", True, False, raw="\udfff"),))
    store.put_record(torn)
    (record,) = store.records()
    assert record.prompt == "a\\ud800b \U0001f600" and record.verdicts[0].raw == "\\udfff"
    put_raw(
        store.folder, "k", changed(key="k", prompt="cut").encode().replace(b"cut", b"\xed\xa0\x80").decode("latin-1")
    )
    with sqlite3.connect(store.folder / "run.sqlite") as db:
        db.execute(
            "UPDATE records SET json = CAST(? AS TEXT)",
            (changed(key="k").replace("img", "im\udc80").encode("ascii", "backslashreplace"),),
        )
    assert all(record.image.encode() for record in store.records())


@pytest.mark.parametrize("sign", "=+-@\t\r")
def test_no_cell_of_an_export_is_a_formula(store, tmp_path, sign):
    text = f"{sign}HYPERLINK(1)"
    info = {"options": {text: text}}
    store.put_record(replace(RECORD, image=text, prompt=text, metrics={text: Metric(-0.5, "d")}, info=info))
    store.export_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert cells.count(f"'{text}") == 2 and "-0.5" in cells, "a number stays one"
    assert not any(cell.startswith(sign) and cell != "-0.5" for cell in cells)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("what", ["folder", "files", "both"])
def test_a_run_that_may_only_be_read_is_read(open_place, what, killed):
    with Store(open_place.with_name("first")) as store:
        store.put_record(RECORD)
        if killed:  # its last transaction lies beside the database
            shutil.copytree(store.folder, open_place)
    if killed:
        assert (open_place / "run.sqlite-wal").stat().st_size
    else:
        store.folder.rename(open_place)
    files = list(open_place.iterdir()) if what != "folder" else []
    places = [*files, *([open_place] if what != "files" else [])]
    with as_nobody(*places), Store(open_place, create=False) as store:
        assert list(store.records()) == [RECORD] and store.get("run", "plan") is None
        with pytest.raises(StoreError, match=r"may only be read|cannot be mended"):
            store.put("a", "b", {})
    with Store(open_place, create=False) as store:
        assert list(store.records()) == [RECORD], "and nothing of it was lost"


def test_a_database_that_is_damaged_inside_is_an_error_of_the_run_wherever_it_is_read(tmp_path):
    with Store(tmp_path) as store, store.together():
        for i in range(300):
            store.put_record(replace(RECORD, key=f"{i:064}"))
    file = tmp_path / "run.sqlite"
    whole = file.read_bytes()
    for cut in (100, 5000, len(whole) // 2, len(whole) - 4096):
        file.write_bytes(whole[:cut])
        said = r"run\.sqlite.*(run again into another folder|whole)"
        with pytest.raises(StoreError, match=said), Store(tmp_path, create=False) as store:
            list(store.records())
            store.counts()
            raise AssertionError("a part was taken for the whole")


def test_a_pipe_in_place_of_a_picture_is_not_waited_for(store):
    name = store.put_image(picture())
    path = next(store.folder.glob(f"images/*/{name}.png"))
    path.unlink()
    os.mkfifo(path)
    assert not store.has_image(name) and not store.seems_whole(name) and store.find_pixels(name) is None


def test_an_export_that_cannot_be_written_says_so(store, tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "a.csv", tmp_path / ("x" * 300 + ".csv")):
        with pytest.raises(InputError, match="cannot be written"):
            store.export_csv(bad)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ({"a": [1, 2.5]}, dict[str, list[float]], ""),
        ({"a": [1, "x"]}, dict[str, list[float]], "a: 1: expected a number, got 'x'"),
        (True, int, "expected a whole number, got True"),
        (3, bool | None, "expected true or false, got 3"),
        ([], dict[str, int], "expected an object, got list"),
        ({"value": 1.0}, Metric, "expected definition, but it is missing"),
        ({"n" * 99: 1}, dict[str, str], f"{'n' * 60}: expected a text, got 1"),
        ("x" * 10**6, int, f"expected a whole number, got {'x' * 10**6!r}"[:89]),
    ],
)
def test_what_does_not_fit_is_named_with_its_place_and_at_bounded_length(value, hint, said):
    assert misfit(value, hint) == said
