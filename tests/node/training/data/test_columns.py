"""Parquet and saved datasets, as pyarrow writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from node.training.data.documents import Conversation
from protocols.errors import ConfigError, DataError
from tests.node.training.data.test_documents import CHAT, read, texts

TABLE = pa.table({"id": list(range(3_000)), "text": [f"text {number} 世界" for number in range(3_000)], "chat": [CHAT] * 3_000})


def save(folder: Path, table: pa.Table = TABLE) -> Path:
    """As `Dataset.save_to_disk` of datasets 4: two files of Arrow's stream format, and state.json."""
    folder.mkdir()
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (table.slice(0, 1_000), table.slice(1_000)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as opened, pa.ipc.new_stream(opened, table.schema) as writer:
            writer.write_table(part, max_chunksize=500)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"}))
    return folder


def files(tmp_path: Path) -> list[Path]:
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=700)
    return [tmp_path / "a.parquet", save(tmp_path / "saved")]


def test_records_are_documents_in_order(tmp_path: Path) -> None:
    for path in files(tmp_path):
        assert texts(read(path)) == TABLE["text"].to_pylist()


def test_conversations_are_lists_of_records(tmp_path: Path) -> None:
    for path in files(tmp_path):
        items = read(path, messages="chat")
        assert len(items) == 3_000 and all(isinstance(item, Conversation) and item.messages == CHAT for item in items)
        total = path.stat().st_size if path.is_file() else sum(part.stat().st_size for part in path.glob("*.arrow"))
        assert 0.9 * total <= items[-1].done_bytes <= total
        assert items[0].done_bytes < items[-1].done_bytes


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    for path in files(tmp_path):
        with pytest.raises(DataError, match=r"has no field 'body' \(it has chat, id, text\)"):
            read(path, field="body")
        with pytest.raises(DataError, match=r"field 'id' in record 1 of .* is int, expected text"):
            read(path, field="id")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    parquet, saved = files(tmp_path)
    parquet.write_bytes(parquet.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet after record 0 \(.*\), expected a whole file"):
        read(parquet)
    second = saved / "data-00001-of-00002.arrow"
    second.write_bytes(second.read_bytes()[:3_000])
    with pytest.raises(DataError, match="cannot be read as arrow after record"):
        read(saved)
    second.unlink()
    with pytest.raises(DataError, match=r"saved has no file 'data-00001-of-00002.arrow'"):
        read(saved)
    (saved / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json lists no files \(KeyError\)"):
        read(saved)


def test_of_several_saved_datasets_one_has_to_be_named(tmp_path: Path) -> None:
    save(tmp_path / "train")
    save(tmp_path / "test")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ConfigError, match=r"holds several datasets; name one: /.*/test, /.*/train"):
        read(tmp_path)


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in files(tmp_path):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(
            ConfigError, match=r"needs pyarrow, which is not installed: .*pip install '.\[data\]'; or give the text as"
        ):
            read(path)
        monkeypatch.undo()
