"""Lists of recordings: what they name, and what is wrong with them."""

from pathlib import Path

import pytest

from engine.errors import AudioError, ConfigError
from speaker.recordings import Recording, list_recordings


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.wav", "a/2.flac", "b.wav"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_table_names_files_from_where_it_lies(folder):
    (folder / "m.csv").write_text('split,path,speaker\ntest,a/1.wav,x\ntrain,"a/2,5.flac",y\n')
    expected = [Recording("a/1.wav", folder / "a/1.wav"), Recording("a/2,5.flac", folder / "a/2,5.flac")]
    assert list_recordings([folder / "m.csv"]) == expected
    (folder / "m.tsv").write_text("\ufeffpath\tsplit\na/1.wav\ttest\n")  # a spreadsheet's byte order mark
    assert list_recordings([folder / "m.tsv"]) == expected[:1]


def test_kaldi_keys_are_the_names(folder, monkeypatch):
    (folder / "a" / "wav.scp").write_text(f"utt1 {folder}/b.wav\n\nutt2   1.wav\nutt3 elsewhere.wav\n")
    expected = [Recording("utt1", folder / "b.wav"), Recording("utt2", folder / "a" / "1.wav"),
                Recording("utt3", Path("elsewhere.wav"))]  # fmt: skip
    assert list_recordings([folder / "a" / "wav.scp"]) == list_recordings([folder / "a"]) == expected


def test_files_folders_and_lists_together(folder):
    (folder / "m.csv").write_text("path\na/1.wav\n")
    (folder / "a" / ".hidden").mkdir()
    for name in ("a/._1.wav", "a/.hidden/2.wav"):
        (folder / name).touch()
    found = list_recordings([folder / "b.wav", folder / "a", folder / "m.csv"])
    assert [each.name for each in found] == [*(f"{folder}/{n}" for n in ("b.wav", "a/1.wav", "a/2.flac")), "a/1.wav"]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("m.csv", "file,split\nx,y\n", "needs a column `path`; its first line has file, split"),
    ("m.csv", "", "its first line has nothing"),
    ("m.csv", "path\n", "lists no recordings"),
    ("m.csv", "path,split\n,test\n", "line 2: path is empty"),
    ("m.csv", 'path\n"a\n', "after line 1: unexpected end of data"),
    ("m.csv", "path\na.wav\na.wav\n", "a.wav is listed twice"),
    ("w.scp", "utt1\n", "line 1: expected `key path`"),
    ("w.scp", "u sox x.wav -t wav - |\n", "u is a pipe, and commands are not run"),
    ("w.scp", "u x.ark:123\n", "lies in a Kaldi archive"),
    ("w.scp", "u x.wav\nu y.wav\n", "u is listed twice"),
])  # fmt: skip
def test_a_list_that_is_none_says_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        list_recordings([tmp_path / name])


def test_missing_lists_binary_lists_segments_and_empty_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"none.csv: no list of recordings can be read"):
        list_recordings([tmp_path / "none.csv"])
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no list of recordings can be read"):
        list_recordings([tmp_path / "x.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="no .* file below"):
        list_recordings([tmp_path / "empty"])
    (tmp_path / "wav.scp").write_text("u x.wav\n")
    (tmp_path / "segments").write_text("u-1 u 0 1\n")
    with pytest.raises(ConfigError, match="`segments` beside it"):
        list_recordings([tmp_path])
