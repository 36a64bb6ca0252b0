"""What W&B wrote offline is read back, whole or cut."""

import shutil
import zlib
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from fusionkit.errors import DataError
from fusionkit.reporting.wandb_offline import BLOCK, HEAD, MAGIC, _records, read_offline

LOSSES = [float(1000 - step) for step in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An offline run whose log is longer than a block, so that records lie across its border."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(place))
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        options = {"name": "one", "group": "late", "job_type": "train", "tags": ["vqa"]}
        config = {"name": "one", "model.size": 3, "model.rules": [["a", None]], "empty": {}}
        run = wandb.init(project="p", mode="offline", dir=place, settings=settings, config=config, **options)
        run.define_metric("val/x", summary="max")
        for step, loss in enumerate(LOSSES):
            run.log({"train/loss": loss, "val/x": float(step % 7), "long": "x" * 300})
        run.log({"answers": wandb.Table(["id", "answer"], [[1, "red"]])})
        run.log({"answers": wandb.Table(["id", "answer"], [[1, "red"], [2, "é"]])})
        run.config.update({"later": True})
        run.summary["test/x"] = 2.5
        run.finish()
        wandb.teardown()  # without it the last records may reach the disk a moment later
    return next((place / "wandb").glob("offline-run-*"))


def test_everything_is_read_back(folder):
    run = read_offline(folder)
    assert next(folder.glob("*.wandb")).stat().st_size > BLOCK
    assert (run.name, run.group, run.job_type, run.tags) == ("one", "late", "train", ["vqa"])
    assert run.config == {"name": "one", "model": {"size": 3, "rules": [["a", None]]}, "empty": {}, "later": True}
    assert [row["train/loss"] for row in run.history if "train/loss" in row] == LOSSES
    assert [row["_step"] for row in run.history] == list(range(len(LOSSES) + 2))
    assert [run.summary[name] for name in ("train/loss", "val/x.max", "test/x")] == [LOSSES[-1], 6, 2.5]
    assert "answers" not in run.summary
    assert (run.tables["answers"].columns, run.tables["answers"].rows) == (["id", "answer"], [[1, "red"], [2, "é"]])


def test_a_killed_run_is_read_to_its_last_whole_record(folder, tmp_path):
    log = next(folder.glob("*.wandb"))
    whole = log.read_bytes()
    counts = []
    for size in (8, 100, BLOCK - 3, BLOCK, BLOCK + 1, BLOCK + 9, len(whole) - 1):
        (tmp_path / "run-cut.wandb").write_bytes(whole[:size])
        losses = [row["train/loss"] for row in read_offline(tmp_path).history if "train/loss" in row]
        assert losses == LOSSES[: len(losses)]
        counts.append(len(losses))
    assert counts == sorted(counts)
    assert 0 == counts[0] < counts[2] < counts[-1]


def test_a_log_that_is_damaged_anywhere_is_told(folder, tmp_path):
    whole = next(folder.glob("*.wandb")).read_bytes()
    log, losses = tmp_path / "run-x.wandb", len(LOSSES)
    end = len(whole)
    places = {*range(60), *range(0, end, 601), *range(BLOCK - 30, BLOCK + 30), *range(end - 40, end)}
    refused = []
    for at in places:
        log.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found = read_offline(log)
        except DataError as error:
            refused.append(str(error))
        else:  # padding between two blocks holds nothing
            assert BLOCK - 7 < at < BLOCK
            assert len([row for row in found.history if "train/loss" in row]) == losses
    assert len(refused) > len(places) - 7
    assert all("run-x.wandb" in told for told in refused)
    log.write_bytes(whole[: BLOCK // 2] + whole[BLOCK // 2 + 5 :])
    with pytest.raises(DataError, match=r"run-x\.wandb is damaged at byte [\d,]+ of [\d,]+; copy it again"):
        read_offline(log)


def pieces(*records: tuple[int, bytes]) -> bytes:
    """A log of one block with these pieces, each with its kind."""
    return MAGIC + b"".join(
        HEAD.pack(zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece for kind, piece in records
    )


@pytest.mark.parametrize(
    ("log", "records"),
    [
        (pieces((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")), [b"a", b"bcd"]),
        (pieces((1, b"a"), (2, b"b"), (3, b"c")), [b"a"]),  # the rest was not written any more
        (pieces((1, b"a")) + bytes(50), [b"a"]),
        (pieces((1, b"a"), (1, b"b" * 20))[:-1], [b"a"]),
        (pieces((1, b"a"), (1, b"b" * 20))[:-24], [b"a"]),
        (pieces((1, b"a"), (4, b"d")), None),
        (pieces((2, b"a"), (1, b"d")), None),
        (pieces((1, b"a"), (5, b"d")), None),
        (pieces((1, b"a"), (0, b"d")), None),
        (pieces((1, b"a")) + b"x" * 20, None),
        (pieces((1, b"a"), (1, b"b" * 20))[:-1] + pieces((1, b"c"))[len(MAGIC) :], None),
    ],
)
def test_what_was_cut_off_is_told_from_what_was_changed(log, records, tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(log)
    if records is not None:
        assert list(_records(tmp_path / "run-x.wandb")) == records
    else:
        with pytest.raises(DataError, match=r"run-x\.wandb is damaged at byte"):
            list(_records(tmp_path / "run-x.wandb"))


def test_a_piece_whose_length_was_changed_is_not_taken_for_one_that_was_cut_off(tmp_path):
    whole = pieces((1, b"a"), (1, b"b" * 20))
    at = len(pieces((1, b"a"))) + 4  # the length's low byte
    (tmp_path / "run-x.wandb").write_bytes(whole[:at] + bytes([whole[at] | 64]) + whole[at + 1 :])
    with pytest.raises(DataError, match="is damaged"):
        list(_records(tmp_path / "run-x.wandb"))


@pytest.mark.parametrize("text", ["", '{"columns": ["id"]', "[]", '{"columns": []}'])
def test_a_damaged_table_is_told(folder, tmp_path, text):
    copy = shutil.copytree(folder, tmp_path / "run")
    for table in copy.rglob("*.table.json"):
        table.write_text(text)
    with pytest.raises(DataError, match=r"table\.json (is no table of W&B's|is not complete JSON|is empty)"):
        read_offline(copy)


def test_a_table_holds_numbers_as_wandb_writes_them(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    for table in copy.rglob("*.table.json"):
        table.write_text('{"columns": ["id", "score"], "data": [[1, NaN]]}')
    tables = read_offline(copy).tables
    assert tables
    assert all(str(table.rows) == "[[1, nan]]" for table in tables.values())


def test_a_table_whose_file_is_gone_is_left_out(folder, tmp_path):
    shutil.copy(next(folder.glob("*.wandb")), tmp_path)
    assert read_offline(tmp_path).tables == {}


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no W&B run"):
        read_offline(tmp_path)
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(DataError, match="is no W&B log"):
        read_offline(tmp_path / "run-x.wandb")


def log_of(path: Path, *records: bytes) -> Path:
    """A log of these records, each with its right checksum."""
    pieces = [HEAD.pack(zlib.crc32(bytes([1]) + each), len(each), 1) + each for each in records]
    path.write_bytes(MAGIC + b"".join(pieces))
    return path


def summary_of(value: str) -> bytes:
    record = Record()
    record.summary.update.add(key="answers", value_json=value)
    return record.SerializeToString()


@pytest.mark.parametrize("record", [b"\xff" * 40, *(summary_of(text) for text in ("", "{", "[" * 20000, "9" * 5000))])
def test_a_whole_record_of_another_content_is_told(tmp_path, record):
    with pytest.raises(DataError, match=r"run-a\.wandb holds a record that is none of W&B's \("):
        read_offline(log_of(tmp_path / "run-a.wandb", record))


@pytest.mark.parametrize("path", ['"../secret.json"', '"/etc/passwd"', "5", "null", '"gone.json"', '"a\\u0000b"'])
def test_tables_outside_of_the_run_are_none(tmp_path, path):
    (tmp_path / "files").mkdir()
    (tmp_path / "secret.json").write_text('{"columns": [], "data": []}')
    value = f'{{"_type": "table-file", "path": {path}}}'
    assert read_offline(log_of(tmp_path / "run-a.wandb", summary_of(value))).tables == {}
    (tmp_path / "files/here.json").write_text('{"columns": [], "data": []}')
    here = summary_of('{"_type": "table-file", "path": "here.json"}')
    assert list(read_offline(log_of(tmp_path / "run-a.wandb", here)).tables) == ["answers"]
