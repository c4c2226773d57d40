"""Training data out of clones, here of small repositories made on the spot."""

import csv
import subprocess

import numpy as np
import pytest
import soundfile

from recipes import public_speech
from recipes.public_corpora import CORPORA
from recipes.public_speech import RATE, clients, expanded, git_folder, trimmed


def sound(path, seconds, rate=RATE, quiet=0.5):
    """Noise between silences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)) + int(1000 * seconds))
    wav = np.concatenate(
        [np.zeros(int(quiet * rate)), 0.1 * rng.standard_normal(int(seconds * rate)), np.zeros(int(quiet * rate))]
    )
    soundfile.write(path, wav, rate)


def commit(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "speech"], check=True)


@pytest.fixture
def clones(tmp_path):
    """Common Voice with a table, Speech Commands, telephone speech."""
    voices = tmp_path / "clones" / "korliu" / "whisper"
    for number in range(4):
        sound(voices / "dataset" / "clips" / f"{number}.wav", 1 + number, rate=22_050)
    sound(voices / "dataset" / "clips" / "0.flac", 1)  # the first again, in another format
    (voices / "dataset" / "clips" / "broken.mp3").write_text("version https://git-lfs.github.com/spec/v1\n")
    sound(voices / "elsewhere.wav", 2)
    (voices / "dataset" / "validated.tsv").write_text(
        'client_id\tpath\tsentence\nann\t0.wav\tI said "go\nann\t1.wav\tx\nann\t0.flac\tx\nbob\t2.wav\ty\n'
    )
    commit(voices)
    commands = tmp_path / "clones" / "vinsis" / "speech-commands-recognition"
    for word in range(5):
        sound(commands / "speech_commands_v0.01" / f"w{word}" / "p1_nohash_0.wav", 0.4 + word / 100, quiet=0.1)
    sound(commands / "speech_commands_v0.01" / "_background_noise_" / "p2_nohash_0.wav", 3)
    commit(commands)
    calls = tmp_path / "clones" / "wake-up-word" / "wuw-corpus-ii"
    (calls / "calls").mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(8_000) * 0.1
    soundfile.write(calls / "calls" / "1.ulaw", noise, 8_000, format="RAW", subtype="ULAW")
    commit(calls)
    return tmp_path / "clones"


def manifest_of(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_recordings_speakers_and_what_is_left_out(clones, tmp_path, caplog):
    (tmp_path / "test.csv").write_text("path,split,speaker\na/2.wav,test,x/q\nb/3.wav,train,x/r\n")
    given = ["--clones", str(clones), "--out", str(tmp_path / "data"), "--workers", "1"]
    with caplog.at_level("INFO"):
        assert public_speech.main([*given, "--leave-out", str(tmp_path / "test.csv")]) == 0
    assert "kerstin: rhasspy/dataset-voice-kerstin is not among the clones" in caplog.text
    rows = manifest_of(tmp_path / "data")
    english = [row for row in rows if row["corpus"] == "common-voice-en"]
    assert [row["path"].rsplit("/", 1)[1] for row in english].count("2.flac") == 0  # a test recording
    assert len(english) == 3
    by_name = {row["path"].rsplit("/", 1)[1]: row for row in english}
    assert by_name.keys() == {"0.flac", "1.flac", "3.flac"}
    assert by_name["0.flac"]["speaker"] == by_name["1.flac"]["speaker"] != by_name["3.flac"]["speaker"]
    assert by_name["3.flac"]["speaker"] == "common-voice-en/unlabelled" and by_name["3.flac"]["licence"] == "CC0"
    assert float(by_name["1.flac"]["seconds"]) == pytest.approx(2.3, abs=0.05)  # 2 s and the margins
    words = [row for row in rows if row["corpus"] == "speech-commands-more"]
    assert [row["speaker"] for row in words] == ["speech-commands-more/p1"]  # four joined; one alone is too short
    wav, rate = soundfile.read(tmp_path / "data" / words[0]["path"])
    assert rate == RATE and len(wav) / rate == pytest.approx(float(words[0]["seconds"])) and 2 < len(wav) / rate < 3
    (call,) = [row for row in rows if row["corpus"] == "wuw-corpus-ii"]
    assert float(call["seconds"]) == pytest.approx(1, abs=0.03)
    # Again, with one clone: the others stay listed.
    (clones / "wake-up-word").rename(tmp_path / "wake-up-word")
    assert public_speech.main(["--clones", str(tmp_path), "--out", str(tmp_path / "data"), "--workers", "1"]) == 0
    assert manifest_of(tmp_path / "data") == rows


def test_a_person_is_left_to_one_corpus():
    names = ["librispeech-100/7", "libri-train-5/7", "librispeech-100/8", "kerstin/7", "common-voice/unlabelled",
             "common-voice-en/unlabelled", "common-voice/a", "common-voice-en/a", "mine/7"]  # fmt: skip
    rows = [{"corpus": name.split("/")[0], "speaker": name} for name in names]
    kept = [row["speaker"] for row in public_speech.once(rows)]
    assert kept == [name for name in names if name not in ("librispeech-100/7", "common-voice/a")]
    assert len({corpus.name for corpus in CORPORA}) == len(CORPORA)  # two would write to the same files


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,speaker\n", "the columns split too"), ("path,split,speaker\na,train,b\n", "no rows of split 'test'")],
)
def test_a_list_that_leaves_nothing_out_is_an_error(tmp_path, clones, capsys, text, message):
    (tmp_path / "test.csv").write_text(text)
    given = ["--clones", str(clones), "--out", str(tmp_path / "data"), "--leave-out", str(tmp_path / "test.csv")]
    assert public_speech.main(given) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_what_is_missing_is_said(tmp_path, clones, capsys):
    assert public_speech.main(["--clones", str(tmp_path), "--out", str(tmp_path / "data")]) == 2
    assert f"no repository of --list lies below {tmp_path} as owner/name" in capsys.readouterr().err
    assert public_speech.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [corpus.repository for corpus in CORPORA]
    broken = tmp_path / "broken" / "korliu" / "whisper"
    broken.mkdir(parents=True)
    (broken / "HEAD").write_text("ref: refs/heads/main\n")
    given = ["--clones", str(tmp_path / "broken"), "--out", str(tmp_path / "data"), "--workers", "1"]
    assert public_speech.main(given) == 2
    assert "is no whole clone" in capsys.readouterr().err
    assert not (tmp_path / "data" / "manifest.csv").exists()


def test_contributors_are_told_by_their_tables(clones):
    found = clients(git_folder(clones / "korliu" / "whisper"))
    assert found.keys() == {"0.wav", "0.flac", "1.wav", "2.wav"} and found["0.wav"] == found["1.wav"] != found["2.wav"]
    assert all(name not in ("ann", "bob") for name in found.values())


def test_silence_is_cut_off_and_silence_alone_is_nothing():
    wav = np.zeros(3 * RATE, np.float32)
    assert len(trimmed(wav)) == 0 and len(trimmed(wav[:5])) == 0
    wav[RATE : 2 * RATE] = 0.1
    assert len(trimmed(wav)) == pytest.approx(1.3 * RATE, abs=RATE / 50)


def test_telephone_bytes_are_read_as_libsndfile_reads_them(tmp_path):
    (tmp_path / "all.ulaw").write_bytes(bytes(range(256)))
    expected, _ = soundfile.read(
        tmp_path / "all.ulaw", dtype="float32", format="RAW", subtype="ULAW", samplerate=8000, channels=1
    )
    np.testing.assert_array_equal(expanded(bytes(range(256))), expected)
