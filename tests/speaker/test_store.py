"""speaker/store.py: what was enrolled is there, what was deleted is gone, and trouble is told as it is."""

import os
import sqlite3
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from engine.errors import StoreError
from speaker.store import Store
from speaker.store_file import VERSION

MODEL = "net@0123456789ab"


def vectors(seed, count=2, dim=16):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "voices.db"


@pytest.fixture
def store(path):
    with Store.open(path, model=MODEL, create=True) as opened:
        opened.enroll("Ada", vectors(1), model=MODEL, quality=[{"seconds": 3.0}, {"seconds": 4.5}],
                      sources=["a.wav", "b.wav"], metadata={"team": "x"})  # fmt: skip
        opened.enroll("Bob", vectors(2, 1), model=MODEL)
        yield opened


def test_what_was_enrolled_is_there_again(store, path):
    store.close()
    with Store.open(path, model=MODEL) as again:
        ada, bob = again.speakers()
        assert (ada.name, ada.num_prints, ada.seconds, ada.metadata) == ("Ada", 2, 7.5, {"team": "x"})
        assert (bob.name, bob.num_prints) == ("Bob", 1)
        prints = again.prints("Ada")
        np.testing.assert_array_equal(np.stack([p.vector for p in prints]), vectors(1))
        assert [p.source for p in prints] == ["a.wav", "b.wav"] and prints[0].quality == {"seconds": 3.0}
        assert again.search(vectors(2)[0])[0].name == "Bob"
        again.enroll("Ada", vectors(3, 1), metadata={"room": 2})
        assert again.speakers()[0].metadata == {"team": "x", "room": 2} and len(again.prints("Ada")) == 3


def test_a_search_sees_what_another_process_writes(store, path):
    assert store.search(vectors(9)[0])[0].cosine < 0.99
    with Store.open(path) as other:
        other.enroll("Cy", vectors(9, 1))
    best = store.search(vectors(9)[0])[0]
    assert best.name == "Cy" and best.cosine == pytest.approx(1, abs=1e-6)


def test_rename_and_merge(store):
    with pytest.raises(StoreError, match="there is a speaker 'Bob' already; `speaker store merge"):
        store.rename("Ada", "Bob")
    store.rename("Ada", "Ada L.")
    store.merge("Ada L.", "Bob")
    (bob,) = store.speakers()
    assert bob.num_prints == 3 and bob.metadata == {"team": "x"}
    with pytest.raises(StoreError, match="into itself"):
        store.merge("Bob", "Bob")


def test_deleted_means_gone_from_the_bytes(store, path):
    for number in range(50):  # enough that pages are split and moved
        store.enroll(f"Person {number}", vectors(100 + number, 3), metadata={"note": f"secret-{number}"})
    secret = vectors(100 + 7, 3)
    assert secret[0].tobytes() in path.read_bytes()
    store.delete("Person 7")
    store.delete("Person 8", store.prints("Person 8")[0].id)
    for file in path.parent.iterdir():
        data = file.read_bytes()
        assert b'Person 7"' not in data and b'secret-7"' not in data
        assert not any(row.tobytes() in data for row in secret)
        assert vectors(108, 3)[0].tobytes() not in data and (file != path or vectors(108, 3)[1].tobytes() in data)
    names = [each.name for each in store.speakers()]
    assert "Person 7" not in names and len(store.prints("Person 8")) == 2
    assert store.search(secret[0])[0].name != "Person 7"


def test_it_is_its_owners_alone(store, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


WRITER = """
import sys, numpy as np
from speaker.store import Store
with Store.open(sys.argv[1], model="net@0123456789ab", create=True) as store:
    for number in range(100_000):
        vector = np.full((1, 16), number + 1, dtype=np.float32)
        store.enroll(f"{sys.argv[2]}-{number}", vector, model="net@0123456789ab")
        print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_acknowledged(path):
    for turn in range(4):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"t{turn}"], stdout=subprocess.PIPE)
        for _ in range(2 + 3 * turn):
            last = int(child.stdout.readline())
        time.sleep(0.005 * turn)  # somewhere in the next one
        child.kill()
        rest, _ = child.communicate()
        last = max([last, *map(int, rest.split())])
        with Store.open(path, model=MODEL) as store:
            assert store.check() == []
            known = {each.speaker: each.vector[0] for each in store.prints()}
            assert all(known[f"t{turn}-{number}"] == number + 1 for number in range(last + 1))


def test_readers_go_on_while_one_writes(path, store):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "w"], stdout=subprocess.PIPE)
    child.stdout.readline()
    counts = [len(store.speakers()) for _ in range(30)]
    child.kill()
    child.communicate()
    assert counts == sorted(counts) and counts[0] >= 3


def test_a_second_writer_waits_and_then_says_so(path, store):
    busy = pytest.raises(StoreError, match="another process is writing")
    with Store.open(path, timeout=0.05) as other, store.database.writing(), busy:
        other.enroll("Cy", vectors(3, 1))
    store.enroll("Cy", vectors(3, 1))


def test_a_full_disk_loses_nothing(path, store):
    pages = store.database.read("PRAGMA page_count")[0][0]
    store.database.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="disk is full; nothing of this call was stored"):
        store.enroll("Many", vectors(4, 500))
    assert [each.name for each in store.speakers()] == ["Ada", "Bob"] and store.check() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: None, "there is no store"),
        (lambda path: path.write_bytes(b"RIFF" * 2000), "is no store of voiceprints"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE x (y)").connection.close(), "something else"),
    ],
)
def test_what_is_no_store(path, change, message):
    change(path)
    with pytest.raises(StoreError, match=message):
        Store.open(path)


def test_a_store_of_a_newer_version(path, store):
    store.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="written by a newer version"):
        Store.open(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_no_permission(path, store):
    store.close()
    path.chmod(0o400)
    with Store.open(path) as opened, pytest.raises(StoreError, match="no permission"):
        opened.enroll("Cy", vectors(3, 1))


def test_prints_of_another_model_are_refused(path, store):
    with pytest.raises(StoreError, match=r"prints of net@0123456789ab, the encoder is other@ffff"):
        Store.open(path, model="other@ffff")
    Store.open(path, model="renamed@0123456789ab").close()  # the same weights
    with pytest.raises(StoreError, match="have 16 numbers, these have 8"):
        store.enroll("Cy", vectors(3, 1, 8))


@pytest.mark.parametrize("bad", [np.zeros((1, 16)), np.full((1, 16), np.nan), np.ones(16), np.ones((0, 16))])
def test_what_is_no_print(store, bad):
    with pytest.raises(StoreError):
        store.enroll("Cy", bad)
    assert len(store.speakers()) == 2


def test_unknown_and_impossible_names(store):
    with pytest.raises(StoreError, match="did you mean 'Ada'"):
        store.delete("ada")
    with pytest.raises(StoreError, match="there are 2 speakers"):
        store.rename("Zoe", "Z")
    with pytest.raises(StoreError, match="one line"):
        store.enroll("A\nB", vectors(3))
    with pytest.raises(StoreError, match="has no print 99"):
        store.delete("Ada", 99)


def test_an_empty_store_cannot_be_searched(path):
    with Store.open(path, create=True) as empty, pytest.raises(StoreError, match="is empty"):
        empty.search(vectors(1)[0])


def test_encrypted_at_rest(path):
    pytest.importorskip("sqlcipher3")
    with Store.open(path, create=True, key="it's a key") as store:
        store.enroll("Ada", vectors(1), model=MODEL)
    data = path.read_bytes()
    assert b"Ada" not in data and b"SQLite" not in data and vectors(1)[0].tobytes() not in data
    with Store.open(path, key="it's a key") as store:
        assert len(store.prints("Ada")) == 2
    for key in (None, "another"):
        with pytest.raises(StoreError):
            Store.open(path, key=key)
