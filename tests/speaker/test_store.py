"""The store of voiceprints: what it keeps, what it forgets, and how it fails."""

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys

import numpy as np
import pytest

from engine.errors import StoreError
from speaker.rescue import rescue
from speaker.store import Store, checked_name, same_model
from speaker.store_file import VERSION, default_path
from speaker.transfer import export_prints, import_prints

MODEL = "mine@0123456789ab"


def vectors(count, seed=0, dim=192):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    """A store of Ada (3 prints) and Bob (1)."""
    with Store.open(tmp_path / "v.db", create=True) as store:
        store.enroll("Ada", vectors(3), model=MODEL, metadata={"team": "north"}, sources=["a", "b", "c"],
                     quality=[{"seconds": 2.0}] * 3)  # fmt: skip
        store.enroll("Bob", vectors(1, 1))
    return tmp_path / "v.db"


def test_what_is_enrolled_comes_back(path):
    with Store.open(path, model="renamed@0123456789ab") as store:
        ada, bob = store.speakers()
        assert (ada.name, ada.num_prints, ada.seconds, ada.metadata) == ("Ada", 3, 6.0, {"team": "north"})
        assert bob.num_prints == 1 and store.model == MODEL and store.check() == []
        np.testing.assert_array_equal(np.stack([p.vector for p in store.prints("Ada")]), vectors(3))
        assert [p.source for p in store.prints("Ada")] == ["a", "b", "c"]
        assert store.search(vectors(1, 1)[0])[0] == ("Bob", pytest.approx(1, abs=1e-6))


def test_the_file_is_its_owners_alone(tmp_path):
    place = tmp_path / "new" / "deep" / "v.db"
    Store.open(place, create=True).close()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 and stat.S_IMODE(place.parent.stat().st_mode) == 0o700


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("VOXCODE_STORE", str(tmp_path / "x.db"))
    assert default_path() == tmp_path / "x.db"
    monkeypatch.delenv("VOXCODE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_path() == tmp_path / "voxcode" / "voiceprints.db"


def test_prints_of_another_model_are_refused_with_both_names(path):
    with pytest.raises(StoreError, match=r"mine@0123456789ab.*other@ffff.*migrate"):
        Store.open(path, model="other@ffff")
    with pytest.raises(StoreError, match="compared; use --model mine, or"):
        Store.open(path, model="other@ffff")
    with pytest.raises(StoreError, match="the weights of mine are others now: give --model a folder of those"):
        Store.open(path, model="mine@ffff")
    with Store.open(path) as store:
        with pytest.raises(StoreError, match=r"mine@0123456789ab.*other@ffff"):
            store.enroll("Eve", vectors(1), model="other@ffff")
        with pytest.raises(StoreError, match="have 192 numbers, these have 8"):
            store.enroll("Eve", vectors(1, dim=8))
        assert len(store.speakers()) == 2  # nothing is left of Eve
    assert same_model("a@1", "b@1") and not same_model("a@1", "a@2") and not same_model("a@", "b@")


def test_names(path):
    assert checked_name(" e\u0301 ") == "\u00e9"
    with Store.open(path) as store:
        for name in ("", "  ", "a\nb", "a\0"):
            with pytest.raises(StoreError, match="one line"):
                store.enroll(name, vectors(1))
        with pytest.raises(StoreError, match="did you mean 'Ada'"):
            store.delete("ada")
        with pytest.raises(StoreError, match="2 speakers"):
            store.rename("Zachary", "x")
        with pytest.raises(StoreError, match="store merge 'Ada' 'Bob'"):
            store.rename("Ada", "Bob")
        store.rename("Ada", "Ada")
        store.rename("Ada", "Ann")
        assert [s.name for s in store.speakers()] == ["Ann", "Bob"]


@pytest.mark.parametrize("bad", [np.zeros((1, 192)), np.full((1, 192), np.nan), np.zeros((0, 192)), np.ones(192)])
def test_no_print_is_made_of_nothing(path, bad):
    with Store.open(path) as store, pytest.raises(StoreError):
        store.enroll("Eve", bad)


def test_the_same_print_is_kept_once(path):
    with Store.open(path) as store:
        assert len(store.enroll("Ada", np.concatenate([vectors(3), vectors(1, 7), vectors(1, 7)]))) == 1
        assert [s.num_prints for s in store.speakers()] == [4, 1]
        assert len(store.enroll("Bob", vectors(1, 7))) == 1  # of another person: the audit tells


def test_merge_keeps_all_prints(path):
    with Store.open(path) as store:
        store.merge("Ada", "Bob")
        assert [(s.name, s.num_prints, s.metadata) for s in store.speakers()] == [("Bob", 4, {"team": "north"})]
        with pytest.raises(StoreError, match="itself"):
            store.merge("Bob", "Bob")


def files_with(folder, data):
    return [each.name for each in folder.iterdir() if data in each.read_bytes()]


@pytest.mark.parametrize("many", [0, 400])
def test_deleted_means_gone(path, many):
    """No file beside the store has the bytes; of many speakers pages were split, which leaves stale cells."""
    with Store.open(path) as store:
        with store.database.writing():
            for number in range(many):
                store.add_speaker(f"speaker {number * 7919 % many}", {"note": "x" * (number % 50)})
                store.add_prints(f"speaker {number * 7919 % many}", vectors(1, number + 10), model=MODEL)
        assert files_with(path.parent, b"Ada") and files_with(path.parent, vectors(3)[1].tobytes())
        store.delete("Ada", print_id=2)
        assert not files_with(path.parent, vectors(3)[1].tobytes()) and len(store.prints("Ada")) == 2
        store.rename("Bob", "Robert")
        store.delete("Ada")
        assert not any(files_with(path.parent, data) for data in (b"Ada", b"Bob", b"north", vectors(3)[0].tobytes()))
        assert "Ada" not in [match.name for match in store.search(vectors(3)[0])]
        with pytest.raises(StoreError, match="has no print 99"):
            store.delete("Robert", print_id=99)


def test_what_a_reader_kept_from_erasing_is_erased_by_the_next_change(path):
    with Store.open(path, timeout=0.1) as store:
        reader = sqlite3.connect(path, isolation_level=None)
        original = store.database._erase

        def in_the_way():
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM prints").fetchall()
            try:
                original()
            finally:
                reader.execute("ROLLBACK")

        store.database._erase = in_the_way
        with pytest.raises(StoreError, match="next change"):
            store.delete("Ada")
        del store.database._erase
        assert [s.name for s in store.speakers()] == ["Bob"]
        store.enroll("Eve", vectors(1, 5))
        assert store.database.about("erase") == "" and not files_with(path.parent, b"Ada")
        reader.close()


def test_readers_read_while_another_writes_and_writers_wait_then_tell(path):
    with Store.open(path) as one, Store.open(path, timeout=0.1) as two:
        assert len(two.gallery()) == 2
        with one.database.writing():
            one.add_speaker("Eve", {})
            one.add_prints("Eve", vectors(1, 3), model=MODEL)
            assert [s.name for s in two.speakers()] == ["Ada", "Bob"]
            with pytest.raises(StoreError, match="another process"):
                two.enroll("Zoe", vectors(1, 4))
        assert len(two.gallery()) == 3  # the kept gallery is out of date, and that is noticed


CHILD = """
import sys, numpy as np
from speaker.store import Store
rng = np.random.default_rng(int(sys.argv[2]))
with Store.open(sys.argv[1], create=True) as store:
    for number in range(10_000):
        name = f"{sys.argv[2]}-{number}"
        store.enroll(name, rng.normal(size=(2, 64)), model="m@1")
        print(name, flush=True)
        if number % 5 == 4:
            store.delete(name)
            print("-" + name, flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path, root):
    known, gone = set(), set()
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for attempt in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "v.db", str(attempt)], env=environment,
                                 stdout=subprocess.PIPE, text=True)  # fmt: skip
        lines = [child.stdout.readline() for _ in range(4 + 3 * attempt)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().split("\n")
        child.wait()
        child.stdout.close()
        told = [line.strip() for line in lines if line.strip()]
        gone |= {line[1:] for line in told if line.startswith("-")}
        known |= {line for line in told if not line.startswith("-")}
    with Store.open(tmp_path / "v.db") as store:
        found = {s.name: s.num_prints for s in store.speakers()}
        assert store.check() == []
        # the child may have done one thing more than it could tell: one name more, or one deleted
        missing = (known - gone) - found.keys()
        assert len(known) >= 12 and len(gone) >= 2 and not gone & found.keys()
        assert all(int(name.split("-")[1]) % 5 == 4 for name in missing) and len(missing) <= 4
        assert set(found.values()) == {2} and len(found.keys() - known) <= 4


def test_a_newer_store_and_a_foreign_file_are_told_apart(path, tmp_path):
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {VERSION + 1}")
    raw.close()
    with pytest.raises(StoreError, match="newer version"):
        Store.open(path)
    with sqlite3.connect(tmp_path / "other.db") as raw:
        raw.execute("CREATE TABLE x (y)")
    raw.close()
    with pytest.raises(StoreError, match="something else"):
        Store.open(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("hello, this is text and no database" * 100)
    with pytest.raises(StoreError, match="no store of voiceprints"):
        Store.open(tmp_path / "text.db")
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(tmp_path / "none.db")
    with pytest.raises(StoreError, match="directory"):
        Store.open(tmp_path)
    Store.open(tmp_path / "empty.db", create=True).close()
    with Store.open(tmp_path / "empty.db") as store, pytest.raises(StoreError, match="holds no prints"):
        store.search(vectors(1)[0])


def test_a_full_disk_loses_nothing(path):
    with Store.open(path) as store:
        pages = store.database.read("PRAGMA page_count")[0][0]
        store.database.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match="disk is full"):
            store.enroll("Eve", vectors(200, 3))
        assert [s.name for s in store.speakers()] == ["Ada", "Bob"] and store.check() == []


def test_a_limit_on_file_sizes_loses_nothing(path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store.open(path) as store:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 8192, before[1]))
            with pytest.raises(StoreError, match="disk"):
                store.enroll("Eve", vectors(200, 3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Store.open(path) as store:
        assert [s.name for s in store.speakers()] == ["Ada", "Bob"] and store.check() == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_no_permission_is_told(path):
    path.chmod(0o400)
    with Store.open(path) as store, pytest.raises(StoreError, match="permission"):
        store.enroll("Eve", vectors(1))


def test_a_print_with_a_flipped_bit_is_noticed(path):
    data = bytearray(path.read_bytes())
    data[data.index(vectors(1, 1)[0].tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with Store.open(path) as store, pytest.raises(StoreError, match="of Bob is damaged.*rescue"):
        store.search(vectors(1)[0])


@pytest.mark.parametrize("lost", ["first page", "every third page"])
def test_rescue_recovers_what_is_on_whole_pages(tmp_path, lost):
    path, count = tmp_path / "v.db", 100
    with Store.open(path, create=True) as store, store.database.writing():
        for number in range(count):
            store.add_speaker(f"speaker {number}", {"n": number})
            store.add_prints(f"speaker {number}", vectors(1, number), model=MODEL, quality=[{"seconds": 1.5}])
    data = bytearray(path.read_bytes())
    pages = [0] if lost == "first page" else range(0, len(data) // 4096, 3)
    for page in pages:
        data[4096 * page : 4096 * (page + 1)] = b"\xaa" * 4096
    path.write_bytes(data)
    with pytest.raises(StoreError):
        Store.open(path)
    left = {n for n in range(count) if vectors(1, n)[0].tobytes() in bytes(data)}
    told = rescue(path, tmp_path / "new.db")
    with Store.open(tmp_path / "new.db") as store:
        prints = store.prints()
        expected = {vectors(1, n)[0].tobytes() for n in left}
        assert {p.vector.tobytes() for p in prints} == expected and f"{len(left)} prints" in told
        for p in prints:
            if not p.speaker.startswith("rescued-"):
                assert p.vector.tobytes() == vectors(1, int(p.speaker.split()[1]))[0].tobytes()
        assert lost != "first page" or (len(left) == count and "lost" not in told)
        assert prints[0].quality == {"seconds": 1.5} and store.model == MODEL


def test_rescue_follows_rows_over_several_pages(tmp_path):
    with Store.open(tmp_path / "v.db", create=True) as store:
        store.enroll("Ada", vectors(2, dim=3000), model=MODEL)
    data = b"\0" * 4096 + (tmp_path / "v.db").read_bytes()[4096:]
    (tmp_path / "v.db").write_bytes(data)
    rescue(tmp_path / "v.db", tmp_path / "new.db")
    with Store.open(tmp_path / "new.db") as store:
        np.testing.assert_array_equal(np.stack([p.vector for p in store.prints("Ada")]), vectors(2, dim=3000))
    (tmp_path / "v.db").write_bytes(bytes(9000))
    with pytest.raises(StoreError, match="no print"):
        rescue(tmp_path / "v.db", tmp_path / "newer.db")


def test_export_and_import(path, tmp_path):
    with Store.open(path) as store, Store.open(tmp_path / "copy.db", create=True) as copy:
        assert export_prints(store, tmp_path / "out.npz") == 4 == import_prints(copy, tmp_path / "out.npz")
        for a, b in zip(store.prints(), copy.prints(), strict=True):
            np.testing.assert_array_equal(a.vector, b.vector)
            assert (a.speaker, a.quality, a.source, a.created) == (b.speaker, b.quality, b.source, b.created)
        assert copy.speakers()[0].metadata == {"team": "north"} and copy.model == MODEL
        assert stat.S_IMODE((tmp_path / "out.npz").stat().st_mode) == 0o600
        np.savez(tmp_path / "e.npz", names=["x/Eve/1.wav"], embeddings=vectors(1, 9), model="o@2")
        with pytest.raises(StoreError, match="o@2"):
            import_prints(copy, tmp_path / "e.npz")
        np.savez(tmp_path / "e.npz", names=["x/Eve/1.wav"], embeddings=vectors(1, 9), model=MODEL)
        import_prints(copy, tmp_path / "e.npz")
        assert [s.name for s in copy.speakers()] == ["Ada", "Bob", "Eve"]
    (tmp_path / "bad.npz").write_text("x")
    with Store.open(path) as store, pytest.raises(StoreError, match="holds no prints") as caught:
        import_prints(store, tmp_path / "bad.npz")
    assert "pickle" not in str(caught.value)


def test_an_encrypted_store(tmp_path):
    pytest.importorskip("sqlcipher3", reason="the extra `encryption` is not installed")
    path = tmp_path / "secret.db"
    with Store.open(path, create=True, key="it's a key") as store:
        store.enroll("Ada", vectors(3), model=MODEL, metadata={"team": "north"})
    assert not any(files_with(tmp_path, data) for data in (b"Ada", b"north", vectors(3)[0].tobytes(), b"SQLite"))
    with Store.open(path, key="it's a key") as store:
        assert store.search(vectors(3)[0])[0].name == "Ada"
    with pytest.raises(StoreError, match="another key"):
        Store.open(path, key="wrong")
    with pytest.raises(StoreError, match="VOXCODE_STORE_KEY"):
        Store.open(path)
    assert "3 prints" in rescue(path, tmp_path / "copy.db", "it's a key")
    Store.open(tmp_path / "plain.db", create=True).close()
    with pytest.raises(StoreError, match="not encrypted"):
        Store.open(tmp_path / "plain.db", key="k")
