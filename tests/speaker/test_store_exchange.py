"""speaker/store_exchange.py: out and in again, and what is left of a damaged file."""

import json

import numpy as np
import pytest

from engine.errors import StoreError
from speaker.store import Store
from speaker.store_exchange import read, rescue, write
from speaker.store_file import PAGE

MODEL = "net@0123456789ab"


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    with Store.open(tmp_path / "voices.db", create=True) as store:
        for number in range(120):
            store.enroll(f"p{number}", rng.standard_normal((2, 192)), model=MODEL, quality=[{"seconds": 2.0}] * 2,
                         metadata={"number": number})  # fmt: skip
    return tmp_path / "voices.db"


def contents(path):
    with Store.open(path) as store:
        return {(p.speaker, p.vector.tobytes(), p.quality["seconds"]) for p in store.prints()}


def test_out_and_in_again(path, tmp_path):
    with Store.open(path) as store:
        assert write(store, tmp_path / "all.json") == 240
    with Store.open(tmp_path / "other.db", create=True) as other:
        assert read(other, tmp_path / "all.json") == (240, 0)
        assert read(other, tmp_path / "all.json") == (0, 240)
        assert other.speakers()[5].metadata.keys() == {"number"} and other.model == MODEL
    assert contents(tmp_path / "other.db") == contents(path)
    assert (tmp_path / "all.json").stat().st_mode & 0o077 == 0


def test_an_import_that_does_not_fit_changes_nothing(path, tmp_path):
    with Store.open(path) as store:
        write(store, tmp_path / "all.json")
    values = json.loads((tmp_path / "all.json").read_text())
    values["speakers"][3]["prints"][0]["vector"] = "AAAA"  # three bytes
    (tmp_path / "bad.json").write_text(json.dumps(values))
    with Store.open(tmp_path / "new.db", create=True) as store:
        with pytest.raises(StoreError, match="is damaged"):
            read(store, tmp_path / "bad.json")
        for text in ("", "[]", '{"kind": "x"}', '{"kind": "voiceprints", "model": 1}'):
            (tmp_path / "no.json").write_text(text)
            with pytest.raises(StoreError, match="holds no voiceprints"):
                read(store, tmp_path / "no.json")
        assert store.speakers() == []
        store.enroll("x", np.ones((1, 192)), model="other@ffff")
        with pytest.raises(StoreError, match="prints of other@ffff, the encoder is net@"):
            read(store, tmp_path / "all.json")


@pytest.mark.parametrize("page", [0, 9, 30])
def test_the_rest_of_a_damaged_store_is_recovered(path, tmp_path, page):
    before = contents(path)
    data = bytearray(path.read_bytes())
    data[page * PAGE : (page + 1) * PAGE] = bytes([0xA5]) * PAGE
    path.write_bytes(data)
    if page:
        with Store.open(path) as store:
            told = store.check()
        assert told
    found, lost = rescue(path, tmp_path / "rescued.db")
    after = contents(tmp_path / "rescued.db")
    vectors = {each[1] for each in after}
    assert len(after) == found >= 220 and vectors <= {each[1] for each in before}
    assert found + lost >= 240 or page
    if page == 0:
        assert after == before, "all is left but the beginning"


def test_a_flipped_bit_is_not_taken_for_a_voice(path, tmp_path):
    data = bytearray(path.read_bytes())
    with Store.open(path) as store:
        victim = store.prints()[17]
    at = data.index(victim.vector.tobytes())
    data[at + 100] ^= 1
    path.write_bytes(data)
    with (
        Store.open(path) as store,
        pytest.raises(StoreError, match=f"print {victim.id} of {victim.speaker} is damaged"),
    ):
        store.prints()
    assert rescue(path, tmp_path / "rescued.db") == (239, 1)


def test_nothing_to_rescue(tmp_path):
    (tmp_path / "noise.db").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(StoreError, match="nothing in"):
        rescue(tmp_path / "noise.db", tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()
    with pytest.raises(StoreError, match="there is no file"):
        rescue(tmp_path / "none.db", tmp_path / "out.db")
