"""The tables of speaker verification, made of a small untrained encoder and buzzing voices."""

import re
import shutil

import numpy as np
import pytest
import torch

import speaker
from benchmarks import (
    adaptation,
    but_fusion,
    calibration,
    conversations,
    diarization,
    identification,
    live_speaker,
    verification,
)
from engine import audio
from engine.errors import SpeechError
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.calibration import Calibration, fit
from speaker.evidence import Evidence
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.rttm import Segment
from speaker.trials import read_trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)
    speaker.save(path / "mine", SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval(), "# x")
    rng, names = np.random.default_rng(0), []
    for number in range(6):
        (path / f"s{number}").mkdir()
        for take in range(3):
            time = np.arange(24000) / 16000
            wav = sum(np.sin(2 * np.pi * (100 + 30 * number) * k * time + rng.uniform(0, 6)) / k for k in range(1, 9))
            names.append(f"s{number}/{take}.wav")
            wav = 0.1 * wav + 0.01 * rng.standard_normal(len(time))
            audio.save(path / names[-1], torch.from_numpy(wav.astype(np.float32))[None], 16000)
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    (path / "list.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    return path


def test_verification_writes_its_table(folder):
    (folder / "card.md").write_text("# x\n<!-- verification -->\n<!-- /verification -->\n")
    arguments = ["--trials", folder / "list.txt", "--root", folder, "--models", folder / "mine", "--seconds", "0", "1"]
    assert verification.main([str(a) for a in [*arguments, "--write", folder / "card.md"]]) == 0
    rows = [line for line in (folder / "card.md").read_text().splitlines() if line.startswith("| list")]
    assert len(rows) == 1 and rows[0].count("[") == 2 and "list 18 + 135" in (folder / "card.md").read_text()


def test_the_middle_is_cut():
    wav = np.arange(100_000, dtype=np.float32)
    assert verification.middle(wav, 0) is not None and len(verification.middle(wav, 0)) == len(wav)
    cut = verification.middle(wav, 1)
    assert len(cut) == 16_000 and cut[0] == 42_000 and len(verification.middle(wav[:10], 1)) == 10


def test_calibration_needs_one_and_tells_how_true_it_is(folder):
    with pytest.raises(SpeechError, match="has no calibration"):
        calibration.measure([folder / "list.txt"], folder, [], str(folder / "mine"))
    encoder = speaker.load(folder / "mine")
    labels = np.arange(40) < 20
    made = fit([f"mine@{encoder.digest}:cosine"], np.where(labels, 0.99, 0.9)[:, None], labels,
               {"seconds": np.full((40, 2), 1.5)}, ("seconds",))  # fmt: skip
    made.save(folder / "mine" / "calibration.json")
    table = calibration.measure([folder / "list.txt"], folder, [], str(folder / "mine"))
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["calibrated", "fixed threshold"] * 2
    ratios = np.array([3.0, 3, -3, -3])
    assert calibration.figures(ratios, np.array([1, 1, 0, 0]))[0] == "0.00"


def test_lists_that_are_all_left_out_write_nothing(folder, tmp_path, capsys):
    labels = np.arange(40) < 20
    made = fit([f"mine@{speaker.load(folder / 'mine').digest}:cosine"], np.where(labels, 0.99, 0.9)[:, None], labels)
    shutil.copytree(folder / "mine", tmp_path / "mine")
    made.save(tmp_path / "mine" / "calibration.json")
    page = tmp_path / "page.md"
    page.write_text("<!-- adaptation -->\nold\n<!-- /adaptation -->\n")
    given = ["--trials", folder / "list.txt", "--root", folder, "--model", tmp_path / "mine", "--write", page]
    assert adaptation.main([*map(str, given)]) == 2
    assert "old" in page.read_text() and "no list is left" in capsys.readouterr().err


def test_encoders_get_the_rate_that_they_take(folder, monkeypatch):
    heard: list[int] = []

    def embed(wav):
        heard.append(len(wav))
        return np.ones(4, np.float32)

    text = verification.measure([folder / "list.txt"], folder, {"a": embed, "b": embed}, [0, 1], rates={"a": 8000})
    assert heard == [12_000] * 18 + [8_000] * 18 + [24_000] * 18 + [16_000] * 18 and "| a - b |" in text
    rows = [f"s{number}/{take}.wav,test,hum,s{number},1.5" for number in range(6) for take in range(3)]
    (folder / "more.csv").write_text("\n".join(["path,split,corpus,speaker,seconds", *rows]) + "\n")
    streams = live_speaker.read_streams(folder / "more.csv", "test", 3, 1, 8000)
    assert [(len(each.enrolment), len(each.live)) for each in streams] == [(12_000, 24_000)] * 6


def test_live_speakers_are_measured(folder):
    """The same voices as streams: near to the file, and known in time."""
    rows = [f"s{number}/{take}.wav,test,hum,s{number},1.5" for number in range(6) for take in range(3)]
    (folder / "manifest.csv").write_text("\n".join(["path,split,corpus,speaker,seconds", *rows]) + "\n")
    streams = live_speaker.read_streams(folder / "manifest.csv", "test", seconds=3, enrol=1)
    assert [(len(each.enrolment), len(each.live)) for each in streams] == [(24_000, 48_000)] * 6
    text = live_speaker.cosine_table(str(folder / "mine"), streams)
    assert "6 streams" in text and "| 8 s | 1.000 (1.000) |" in text
    encoder = speaker.load(folder / "mine")
    labels = np.arange(40) < 20
    made = fit([f"mine@{encoder.digest}:cosine"], np.where(labels, 0.99, 0.9)[:, None], labels)
    live = live_speaker.LiveEncoder(encoder)
    paths = live_speaker.ratio_paths(live, Evidence(made), streams)
    assert paths.ratios.shape == (6, 6, 6) and np.isfinite(paths.ratios[:, :, 3:]).all()
    assert paths.speech[0, -1] == pytest.approx(3, abs=0.1)
    with pytest.raises(SpeechError, match="no speaker"):
        live_speaker.read_streams(folder / "manifest.csv", "train", 3, 1)
    anybody = (folder / "manifest.csv").read_text().replace(",s3,", ",hum/unlabelled,")
    (folder / "anybody.csv").write_text(anybody)
    assert len(live_speaker.read_streams(folder / "anybody.csv", "test", seconds=3, enrol=1)) == 5


def test_bounds_and_times_of_the_sequential_test():
    ratios = np.array([[[1.0, 5.0, 9.0], [0.0, 2.0, -1.0]], [[3.0, 1.0, np.nan], [2.0, 8.0, np.nan]]])
    speech = np.array([[0.5, 1.0, 1.5], [0.4, 0.8, np.nan]])
    right, wrong = live_speaker.best_and_peaks([live_speaker.Paths(ratios, speech)])
    assert sorted(wrong) == [2.0, 3.0]
    bound = live_speaker.measured_bound(wrong)
    assert bound > 3 and bound == pytest.approx(3)
    assert [live_speaker.first_time(*each, bound) for each in right] == [1.0, 0.8]
    assert live_speaker.first_time(ratios[0, 1], speech[0], bound) == np.inf
    ratios[1, 0] = np.nan  # never speech enough: no bound is reached
    _, wrong = live_speaker.best_and_peaks([live_speaker.Paths(ratios, speech)])
    assert live_speaker.measured_bound(wrong) == pytest.approx(2)


def test_encoders_together_are_the_mean_of_their_scores(folder):
    encoder = verification.ours(speaker.load(folder / "mine"))
    both = {"a": encoder, "b": lambda wav: encoder(wav[::-1].copy())}
    text = verification.measure([folder / "list.txt"], folder, both, [0], ["a", "b"])
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| list")]
    assert rows == ["a", "b", "a & b", "a - b", "a - a & b"]


def test_a_judge_gets_a_row_and_is_what_others_are_compared_with(folder):
    encoder = verification.ours(speaker.load(folder / "mine"))
    made = Calibration(["a@1:cosine"], ["seconds"], [-5.0, 0.0, 0.0, 0.0], 1.0, 0.1, 10, 5, 0.0)
    both = {"a": encoder, "b": encoder}
    text = verification.measure([folder / "list.txt"], folder, both, [0], judges={"a": Evidence(made)})
    rows = {line.split("|")[2].strip(): line.split("|")[3].split()[0] for line in text.splitlines() if "| list" in line}
    assert [*rows] == ["a", "a, verify", "b", "a - b", "a, verify - b"] and "`speaker verify`" in text
    assert float(rows["a, verify"]) == pytest.approx(100 - float(rows["a"]), abs=0.02)  # upside down, as the map is


def test_the_fusion_of_networks_is_measured_beside_each_of_them(folder, tmp_path):
    """Speakers, some held out, from a manifest; an x-vector network gets a PLDA."""
    torch.manual_seed(1)
    network = XvectorConfig(num_bins=40, channels=24, stats_channels=32, embedding_dim=4)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval()
    speaker.save(tmp_path / "tdnn", encoder, "# x")
    rows = [f"{path},train,demo,demo/{path.parent.name},1.5" for path in sorted(folder.glob("s*/*.wav"))]
    (tmp_path / "train.csv").write_text("path,split,corpus,speaker,seconds\n" + "\n".join(rows) + "\n")
    (tmp_path / "doc.md").write_text("<!-- but -->\n<!-- /but -->\n")
    given = [
        "--models",
        folder / "mine",
        tmp_path / "tdnn",
        "--data",
        tmp_path / "train.csv",
        "--percent",
        50,
        "--cache",
        tmp_path / "cache",
        "--trials",
        folder / "list.txt",
        "--root",
        folder,
        "--seconds",
        0,
        1,
    ]
    assert but_fusion.main([str(a) for a in [*given, "--write", tmp_path / "doc.md"]]) == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "doc.md").read_text().splitlines()
             if line.startswith("| list")]  # fmt: skip
    assert [row[1] for row in table[:3]] == ["mine", "tdnn", "fusion"] and len(table) == 4
    whole = [float(row[2].split()[0]) for row in table[:3]]
    assert float(table[3][1].split()[0]) == pytest.approx(whole[2] - min(whole[:2]), abs=0.011)
    assert but_fusion.main([str(a) for a in ["--models", folder / "mine", *given[3:]]]) == 2


def test_adaptation_is_measured_across_halves_of_the_speakers(tmp_path):
    """Voices far to one side: adapted, they are told apart; the mean is never that of the trials' own half."""
    names = [f"s{person}/{take}.wav" for person in range(80) for take in range(2)]
    rng = np.random.default_rng(0)
    lines = [f"1 s{person}/0.wav s{person}/1.wav" for person in range(80)]
    lines += [f"0 s{a}/0.wav s{b}/1.wav" for a, b in rng.integers(80, size=(600, 2)) if a != b]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    trials = read_trials(tmp_path / "list.txt")
    persons = np.repeat(rng.normal(size=(80, 16)), 2, axis=0)
    rows = {name: row for row, name in enumerate(names)}
    vectors = (persons + 0.5 * rng.normal(size=persons.shape) + 3.0)[[rows[name] for name in trials.recordings()]]
    made = Evidence(Calibration(["a@1:cosine"], ["seconds"], [9.0, 0.0, 0.0, 0.0], -4.0, 0.1, 10, 5, 0.0))
    found = adaptation.measure("list", trials, vectors, np.full(len(vectors), 2.0), made, [10, 30])
    assert [row[1] for row in found] == ["", "10", "30"]
    errors, costs = ([float(row[column].split()[0]) for row in found] for column in (3, 5))
    assert errors[0] > errors[1] + 1 and costs[2] < costs[1] < costs[0] - 0.5
    assert all(0.9 < float(share) < 1 for share in found[1][2].split(", "))
    for half in (True, False):
        chosen = {names[row].split("/")[0] for row in adaptation.of_people(names, half, 12)}
        assert len(chosen) == 12 and all(adaptation.in_first_half(owner) == half for owner in chosen)


@pytest.fixture
def voices(tmp_path, recordings):
    rows = [f"{path},test,bundled,bundled/{path.stem.split('_')[0]},5,16000,en,x" for path in recordings]
    (tmp_path / "manifest.csv").write_text("path,split,corpus,speaker,seconds,sample_rate,language,licence\n"
                                           + "\n".join(rows) + "\n")  # fmt: skip
    return tmp_path / "manifest.csv"


def test_conversations_are_reproducible_and_their_truth_is_heard(voices):
    found = conversations.recordings(voices, "test", seconds=1)
    made, again, noisy = (
        conversations.converse(found, np.random.default_rng(3), 2, overlap, 10, snr)
        for overlap, snr in ((0.0, None), (0.0, None), (0.2, 10.0))
    )
    assert made.truth == again.truth and (made.wav == again.wav).all() and len(noisy.truth)
    assert {segment.speaker for segment in made.truth} == {"bundled/allison", "bundled/carlo"}
    heard = diarization.truth_frames(made)
    power = np.square(np.resize(made.wav, (len(heard), 160))).mean(1)
    assert power[heard].mean() > 20 * power[~heard].mean()


def test_conversations_go_on_while_there_is_speech_for_them(monkeypatch):
    """Also where one speaker has a turn only, or is the last who is due."""
    turn = np.ones(3 * conversations.RATE, np.float32), np.array([[0.0, 3.0]])
    monkeypatch.setattr(conversations, "_turns", lambda paths, rng: [turn] * len(paths))
    for turns in ([20, 20], [1, 20, 20], [2, 2, 20, 20]):
        speakers = {f"c/{number}": [None] * count for number, count in enumerate(turns)}
        for seed in range(40):
            made = conversations.converse(speakers, np.random.default_rng(seed), len(turns), 0.0, 60)
            assert len(made.wav) >= 60 * conversations.RATE
            spoken = [segment.speaker for segment in made.truth]
            assert all(spoken.count(name) >= min(2, len(paths)) for name, paths in speakers.items())
            assert all(a != b for a, b in zip(spoken, spoken[1:], strict=False))


def test_anybody_is_no_speaker_of_a_conversation(voices):
    rows = voices.read_text().splitlines()
    rows += [row.replace("bundled/allison", "bundled/unlabelled") for row in rows if "bundled/allison" in row]
    voices.write_text("\n".join(rows) + "\n")
    assert set(conversations.recordings(voices, "test", seconds=1)) == {"bundled/allison", "bundled/carlo"}


def test_error_parts_of_a_made_up_answer():
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed")
    truth = [Segment(0, 4, "a"), Segment(3, 6, "b")]
    found = [Segment(0, 3, "x"), Segment(3, 5, "y"), Segment(7, 8, "y")]
    # One second of overlap and 5 to 6 s are missed, 7 to 8 s is false, all else is right.
    np.testing.assert_allclose(diarization.error_parts(truth, found, 10, 0.0), [2, 1, 0, 7], atol=1e-9)
    assert diarization.error_parts(truth, found, 10, 0.25)[3] < 7


def test_diarization_writes_its_table(voices, capsys):
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed")
    page = voices.parent / "page.md"
    page.write_text("<!-- diarization -->\n<!-- /diarization -->\n")
    arguments = ["--data", voices, "--speakers", 2, "--overlap", 0, "--num", 2, "--seconds", 8, "--least", 1]
    arguments += ["--write", page]
    names = ["energy, spectral", "energy, ahc, VBx", "energy, ahc", "true speech, spectral, number told"]
    assert diarization.main([*map(str, arguments), "--systems", *names]) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| energy, ", "| true"))]
    assert len(rows) == 4 and all(line.count("[") == 2 for line in rows)
    assert re.search(r"^2 conversations of \d+ s on average, \d+ s at least, split test\.$", page.read_text(), re.M)


def test_identification_measures_drawn_and_real_speakers(folder, monkeypatch, capsys):
    monkeypatch.setattr(identification, "REAL_SIZES", (4,))
    monkeypatch.setattr(identification, "cohort_of", lambda *_: np.random.default_rng(1).normal(size=(60, 24)))
    names = [f"{'ab'[n % 2]}/{n}" for n in range(60) for _ in range(3)]
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(60, 24)), 3, 0) + 0.3 * rng.normal(size=(180, 24))
    monkeypatch.setattr(identification, "training", lambda *_: (vectors, names))
    arguments = ["--train", "none.csv", "--trials", folder / "list.txt", "--root", folder, "--model", folder / "mine",
                 "--sizes", "20", "50", "--probes", "100", "--search", "300", "--first-dims", "24"]  # fmt: skip
    assert identification.main([str(each) for each in arguments]) == 0
    told = capsys.readouterr().out
    assert told.count("| 50 | ") == 1 and "| list | 4 | " in told and "| simulated | 4 | " in told
    assert "| 300 | 24 dimensions, best 10000 ranked by all | 100.00 [98.12, 100.00] |" in told


def test_identification_checks_its_options_first(folder, capsys):
    given = ["--train", "none.csv", "--model", str(folder / "mine")]
    assert identification.main([*given, "--trials", str(folder / "list.txt")]) == 2
    assert "--root" in capsys.readouterr().err
    assert identification.main([*given, "--sizes", "10", "--probes", "19"]) == 2
    assert "20 galleries" in capsys.readouterr().err


def test_what_cannot_be_written_is_one_line(folder, monkeypatch, capsys):
    given = ["--trials", folder / "list.txt", "--root", folder, "--write", folder / "nowhere.md"]
    monkeypatch.setattr(calibration, "measure", lambda *_: "table")
    assert calibration.main([*map(str, given)]) == 2
    assert "calibration: error: there is no" in capsys.readouterr().err


def test_simulated_speakers_are_like_those_they_were_fitted_on():
    rng, shape = np.random.default_rng(0), np.linspace(2, 0.5, 6)
    people = rng.normal(size=(4000, 6)) * shape
    vectors = np.repeat(people, 3, 0) + 0.4 * rng.normal(size=(12000, 6))
    simulation = identification.Simulation(vectors, [f"c/{k}" for k in range(4000) for _ in range(3)])
    drawn = simulation.people(20_000, rng)
    np.testing.assert_allclose(drawn.std(0), shape, rtol=0.05)
    np.testing.assert_allclose((simulation.recordings(drawn, rng) - drawn).std(0), 0.4, rtol=0.05)
    assert identification.wilson(0, 100) == "0.00 [0.00, 3.70]"
