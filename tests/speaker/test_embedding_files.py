"""Embeddings as files: what is written is read, and what is no such file is refused."""

import sys

import numpy as np
import pytest

from engine.errors import ScoreError
from speaker import collections
from speaker.embedding_files import EmbeddingFile, check_format, read, write


@pytest.fixture
def some():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 5)).astype(np.float32)
    return EmbeddingFile(["s1/a.wav", "s1/b.wav", "s2/ü.wav"], vectors, np.array([1.5, np.nan, 2.25]), "mine@0123")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_written_is_read(suffix, some, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"e{suffix}"
    write(path, some)
    for found in (read(path), collections.read(path)):
        assert found.names == some.names and found.model == some.model
        np.testing.assert_array_equal(found.vectors, some.vectors)
        np.testing.assert_array_equal(found.seconds, some.seconds)
    none = EmbeddingFile([], np.zeros((0, 5), np.float32), np.zeros(0), "mine@0123")
    write(path, none)
    assert read(path).names == [] and list(tmp_path.iterdir()) == [path]


def test_parquet_has_the_columns_that_others_expect(some, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write(tmp_path / "e.parquet", some)
    schema = parquet.read_schema(tmp_path / "e.parquet")
    assert schema.names == ["name", "embedding", "seconds", "model"]
    assert schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 5)


def test_parquet_of_others_is_read_strictly(some, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "e.parquet"

    def store(**columns):
        parquet.write_table(pyarrow.table(columns), path)

    store(name=["a", "b"], embedding=[[1.0, 2.0], [3.0, 4.0]])  # lists of any length, no seconds, no model
    found = collections.read(path, "theirs")
    assert found.vectors.tolist() == [[1, 2], [3, 4]] and np.isnan(found.seconds).all() and found.model == "theirs"
    for columns, message in [
        ({"id": ["a"], "embedding": [[1.0]]}, "no column name, it has id, embedding"),
        ({"name": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "holds no embeddings"),
        ({"name": ["a", None], "embedding": [[1.0], [1.0]]}, "rows without a name"),
        ({"name": ["a", "b"], "embedding": [[1.0], [2.0]], "model": ["x", "y"]}, "of 2 models, x, y"),
    ]:
        store(**columns)
        with pytest.raises(ScoreError, match=message):
            read(path)
    path.write_text("hello")
    with pytest.raises(ScoreError, match="holds no embeddings"):
        read(path)


def test_without_pyarrow_the_way_out_is_named(some, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for attempt in (lambda p: check_format(p), lambda p: write(p, some), lambda p: read(p)):
        with pytest.raises(ScoreError, match=r"pip install 'voxcode\[parquet\]'"):
            attempt(tmp_path / "e.parquet")
    with pytest.raises(ScoreError, match=r"must end in .npz or .parquet"):
        check_format(tmp_path / "e.csv")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_what_is_no_file_of_embeddings_is_refused(content, tmp_path):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(ScoreError, match="holds no embeddings") as caught:
        read(tmp_path / "e.npz")
    assert "pickle" not in str(caught.value)  # numpy's advice to load it unsafely


def test_a_damaged_zip_and_objects_are_refused(some, tmp_path):
    path = tmp_path / "e.npz"
    write(path, some)
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the directory: flags at 8, method of compression at 10
    for place, value in ((8, 1), (10, 99)):
        data = bytearray(whole)
        data[entry + place] = value
        path.write_bytes(data)
        with pytest.raises(ScoreError, match="holds no embeddings"):
            read(path)
    np.savez(path, names=np.array(["a"]), embeddings=np.array([[None]], dtype=object))
    with pytest.raises(ScoreError, match="of Python objects") as caught:
        read(path)
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_names_that_are_no_text_keep_their_bytes_in_sight(suffix, some, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    some.names[0] = "s1/\udcff.wav"  # as Python gives the byte 255 of a file's name
    write(tmp_path / f"e{suffix}", some)
    assert read(tmp_path / f"e{suffix}").names == ["s1/\\xff.wav", "s1/b.wav", "s2/ü.wav"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kaldiio leaves what an .scp names open
def test_archives_of_kaldi(tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    rng = np.random.default_rng(0)
    vectors = {f"s{k}/u": rng.normal(size=5).astype(np.float32) for k in range(3)}
    kaldiio.save_ark(str(tmp_path / "a.ark"), vectors, scp=str(tmp_path / "a.scp"))
    kaldiio.save_ark(str(tmp_path / "t.ark"), vectors, text=True)
    for name in ("a.ark", "a.scp", "t.ark"):
        found = collections.read(tmp_path / name, "theirs@1")
        assert found.names == list(vectors) and found.model == "theirs@1" and np.isnan(found.seconds).all()
        np.testing.assert_allclose(found.vectors, np.stack(list(vectors.values())), rtol=1e-5)
    kaldiio.save_ark(str(tmp_path / "mixed.ark"), {**vectors, "x/u": np.ones(4, np.float32)})
    (tmp_path / "cut.ark").write_bytes((tmp_path / "a.ark").read_bytes()[:-7])
    (tmp_path / "junk.ark").write_bytes(b"nothing of the kind")
    for name in ("mixed.ark", "cut.ark", "junk.ark"):
        with pytest.raises(ScoreError, match=f"{name} holds no embeddings of one dimension"):
            collections.read(tmp_path / name)
