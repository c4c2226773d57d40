"""What `speaker score` and `verify` refuse before hours of embedding, and what they never write."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import speaker
from engine import audio
from engine.errors import ScoreError, SpeechError
from engine.features import kaldi_fbank
from speaker import calibration, collections, plda, plots, score_files, verify
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.cli import app
from speaker.embedding_files import EmbeddingFile, write
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.trials import Trials

DIM = 8
NAMES = [f"s{number}/{take}.wav" for number in range(6) for take in range(4)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An encoder, embeddings of six voices that it is said to have made, recordings of two, and no embedding of any."""
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=16, mfa_channels=24, embedding_dim=DIM)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval()
    speaker.save(tmp_path / "mine", encoder, "# mine")
    rng = np.random.default_rng(0)
    voices = np.repeat(rng.standard_normal((6, DIM)), 4, 0) + 0.7 * rng.standard_normal((24, DIM))
    embed(tmp_path / "e.npz", NAMES, voices, identity(tmp_path))
    pairs = [(a, b) for k, a in enumerate(NAMES) for b in NAMES[k + 1 :]]
    (tmp_path / "trials.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    for number in range(2):
        wav = torch.from_numpy(rng.standard_normal((1, 16_000)).astype(np.float32))
        (tmp_path / "in" / f"p{number}").mkdir(parents=True)
        audio.save(tmp_path / "in" / f"p{number}" / "0.wav", 0.1 * wav, 16_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collections, "embed_files", lambda *_: pytest.fail("recordings were embedded"))
    return tmp_path


def embed(path, names, vectors, model, seconds=3.0):
    write(path, EmbeddingFile(names, vectors.astype(np.float32), np.broadcast_to(np.array(seconds), len(names)), model))


def identity(folder):
    return speaker.load(folder / "mine").identity


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


READY = ("score", "--trials", "trials.txt", "--embeddings", "e.npz", "--model", "./mine", "--out", "o.txt")
COHORT = ("--norm", "as", "--top", "2", "--cohort", "in")


def test_a_cohort_is_embedded_last(folder):
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "plain.json")
    with pytest.raises(ScoreError, match=r"for mine@\w+:cosine, the scores are of mine@\w+:cosine\+as2\(own cohort\)"):
        run(*READY, *COHORT, "--calibration", "plain.json")
    (folder / "more.txt").write_text((folder / "trials.txt").read_text() + "0 s0/0.wav s9/0.wav\n")
    with pytest.raises(ScoreError, match=r"1 recordings of the list have no embedding, the first is s9/0\.wav"):
        run("score", "--trials", "more.txt", *READY[3:], *COHORT)
    said = {"": "does not say who speaks in 2 recordings", "p0/0.wav a\np1/0.wav a\n": "a cohort of one speaker"}
    for text, message in said.items():
        (folder / "utt2spk").write_text(text)
        with pytest.raises(ScoreError, match=message):
            run(*READY, *COHORT, "--utt2spk", "utt2spk")
    with pytest.raises(ScoreError, match="nothing: no list can be read"):
        run(*READY, *COHORT, "--utt2spk", "nothing")
    assert not (folder / "o.txt").exists()


def test_models_with_the_names_of_recordings(folder):
    (folder / "two.txt").write_text("1 p0/0.wav p0/0.wav\n0 p0/0.wav p1/0.wav\n")
    (folder / "spk2utt").write_text("p1/0.wav p0/0.wav p1/0.wav\n")
    with pytest.raises(ScoreError, match=r"1 models have the name of a recording, the first is p1/0\.wav"):
        run("score", "--trials", "two.txt", "--root", "in", "--model", "./mine", "--enrol", "spk2utt", "--out", "o.txt")
    (folder / "kaldi").mkdir()
    (folder / "kaldi" / "wav.scp").write_text("p0/0.wav in/p0/0.wav\n")
    with pytest.raises(ScoreError, match="`speaker embed kaldi` takes them"):
        run("score", "--trials", "two.txt", "--root", "kaldi", "--model", "./mine", "--out", "o.txt")


def test_scores_that_are_no_numbers_are_not_written(folder, monkeypatch):
    (folder / "o.txt").write_text("good\n")
    for name, part in (("transform", np.full((DIM, DIM), np.nan)), ("psi", np.full(DIM, np.inf))):
        whole = plda.Plda(np.zeros(DIM), np.eye(DIM), np.zeros(DIM), np.eye(DIM), np.ones(DIM))
        dataclasses.replace(whole, **{name: part}).save(folder / "bad.npz")
        with pytest.raises(ScoreError, match=r"bad\.npz holds a PLDA with values that are not finite"):
            run(*READY, "--force", "--backend", "plda", "--plda", "bad.npz")
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "c.json")
    made = json.loads((folder / "c.json").read_text())
    (folder / "c.json").write_text(json.dumps({**made, "offset": float("nan")}))
    with pytest.raises(ScoreError, match=r"c\.json has weights that are not finite"):
        run(*READY, "--force", "--calibration", "c.json")
    monkeypatch.setattr("speaker.scoring.Cosine.pairs", lambda self, a, b, counts=1: np.full(len(a), np.nan))
    with pytest.raises(ScoreError, match="not finite"):
        run(*READY, "--force")
    assert (folder / "o.txt").read_text() == "good\n"


def test_a_file_is_named_whose_embeddings_are_broken(folder):
    embed(folder / "twice.npz", ["a", "a"], np.ones((2, DIM)), "m@1")
    with pytest.raises(ScoreError, match=r"twice\.npz: there are several embeddings of the name a"):
        collections.read(folder / "twice.npz")
    embed(folder / "none.npz", ["a", "b"], np.stack([np.ones(DIM), np.zeros(DIM)]), "m@1")
    with pytest.raises(ScoreError, match=r"none\.npz: 1 embeddings are 0 or not finite, the first is b"):
        collections.read(folder / "none.npz")


def test_what_cannot_be_written_is_said_first(folder):
    with pytest.raises(SpeechError, match=r"trials\.txt is a file; name a folder"):
        plots.check(folder / "trials.txt" / "pictures" / "more", force=False)
    with pytest.raises(ScoreError, match=r"x\.txt cannot be written to /proc"):
        run(*READY[:-1], "/proc/x.txt")
    with pytest.raises(ScoreError, match="cannot hold the fused scores and what was learned"):
        run("fuse", "a.txt", "b.txt", "--learn", "x", "--out", "x")


def test_seconds_that_embeddings_do_not_tell(folder):
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "c.json")
    held = np.load(folder / "e.npz")
    more = np.concatenate([held["embeddings"], np.ones((1, DIM))])
    embed(folder / "more.npz", [*NAMES, "of no trial"], more, str(held["model"]), [*[3.0] * 24, np.nan])
    run(*READY[:3], "--embeddings", "more.npz", *READY[5:], "--calibration", "c.json")
    embed(folder / "e.npz", NAMES, held["embeddings"], str(held["model"]), seconds=np.nan)
    with pytest.raises(ScoreError, match=r"c\.json needs seconds of speech, and e\.npz does not tell them"):
        run(*READY, "--calibration", "c.json", "--force")


def test_a_calibration_is_for_recordings_or_for_models(folder):
    (folder / "spk2utt").write_text("".join(f"m{n} s{n}/0.wav s{n}/1.wav\n" for n in range(6)))
    lines = [f"{int(n == k)} m{n} s{k}/{take}.wav\n" for n in range(6) for k in range(6) for take in (2, 3)]
    (folder / "models.txt").write_text("".join(lines))
    models = ("score", "--trials", "models.txt", *READY[3:-1], "models.out", "--enrol", "spk2utt", "--force")
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "singles.json")
    run(*models)
    run("calibrate", "models.out", "--out", "models.json")
    assert calibration.load(folder / "models.json").enrolment == "models"
    told = run(*models, "--calibration", "singles.json")
    assert "singles.json: it was learned on single recordings, these are models of several" in told.stderr
    assert "learned on" not in run(*models, "--calibration", "models.json").stderr
    assert "learned on models" in run(*READY, "--calibration", "models.json").stderr
    run(*models)
    with pytest.raises(ScoreError, match="calibrate either kind"):
        run("calibrate", "raw.txt", "models.out", "--out", "never.json")
    with pytest.raises(ScoreError, match="log-likelihood ratios already"):
        run("calibrate", "o.txt", "--out", "never.json")


def test_a_trained_plda_is_adapted(folder):
    rng = np.random.default_rng(1)
    embed(folder / "new.npz", [f"x/{k}" for k in range(60)], 2 + 3 * rng.standard_normal((60, DIM)), identity(folder))
    assert "24 embeddings of 6 speakers, 8 dimensions" in run("plda", "e.npz", "--out", "p.npz").stdout
    run("plda", "e.npz", "--adapt", "new.npz", "--out", "at_once.npz")
    told = run("plda", "p.npz", "--adapt", "new.npz", "--out", "later.npz").stdout
    assert told == "later.npz: p.npz, adapted to 60 embeddings, 8 dimensions\n"
    for name in ("centre", "transform", "psi"):
        one, other = (getattr(plda.load(folder / f), name) for f in ("at_once.npz", "later.npz"))
        np.testing.assert_allclose(one, other)
    assert plda.load(folder / "later.npz").model == identity(folder)
    for given in (["--out", "n.npz"], ["--adapt", "new.npz", "--dim", "3", "--out", "n.npz"]):
        with pytest.raises(ScoreError, match=r"p\.npz is a PLDA already; it can be adapted, with --adapt"):
            run("plda", "p.npz", *given)
    embed(folder / "others.npz", ["a", "b"], np.ones((2, DIM)), "other@1")
    with pytest.raises(ScoreError, match=r"others\.npz is of other@1, p\.npz is of mine@"):
        run("plda", "p.npz", "--adapt", "others.npz", "--out", "n.npz")


def test_tables_of_ratios_tell_what_decisions_cost(folder):
    (folder / "about.csv").write_text(
        "path,room\n" + "".join(f"{name},hall\n" for name in NAMES[:-1]) + f"{NAMES[-1]},\n"
    )
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "c.json")
    told = run(*READY, "--calibration", "c.json", "--by", "about.csv").stdout.splitlines()
    for start in ("  2 to 4 s", "  hall"):
        (line,) = [line for line in told if line.startswith(start)]
        assert "actDCF" in line and "Cllr" in line
    assert "  fewer than 30 trials of a kind of other lengths" in told


def test_a_list_without_labels(folder):
    """Of an evaluation that others judge: scores and ratios as those of the same trials with labels."""
    run(*READY[:-1], "raw.txt")
    run("calibrate", "raw.txt", "--out", "c.json")
    run(*READY, "--calibration", "c.json")
    for text in (
        "".join(line[2:] for line in (folder / "trials.txt").read_text().splitlines(keepends=True)),
        "modelid\tsegmentid\n"
        + (folder / "trials.txt").read_text().replace("0 ", "").replace("1 ", "").replace(" ", "\t"),
    ):
        (folder / "blind.txt").write_text(text)
        blind = ("score", "--trials", "blind.txt", *READY[3:-1])
        told = run(*blind, "blind.out", "--force", "--calibration", "c.json").stdout
        assert told == "trials      276, without labels: no error rates\n"
        found, known = (score_files.read(folder / name) for name in ("blind.out", "o.txt"))
        assert not found.trials.labels and found.trials.enrol == known.trials.enrol
        np.testing.assert_array_equal(found.scores, known.scores)
    assert json.loads(run(*blind, "json.out", "--json").stdout)["trials"] == 276
    # A fusion that others have learned.
    run("fuse", "raw.txt", "raw.txt", "--learn", "f.json", "--out", "f.out")
    assert "without labels" in run("fuse", "json.out", "json.out", "--fusion", "f.json", "--out", "g.out").stdout
    fused, expected = (score_files.read(folder / name).scores for name in ("g.out", "f.out"))
    np.testing.assert_array_equal(fused, expected)
    for given in (["calibrate", "json.out", "--out", "n"], ["compare", "json.out", "json.out"],
                  ["fuse", "json.out", "json.out", "--learn", "n", "--out", "m"]):  # fmt: skip
        with pytest.raises(ScoreError, match=r"json\.out has no labels"):
            run(*given)
    fuse = ("fuse", "json.out", "json.out", "--fusion", "f.json", "--out", "n.out")
    for given in ((*blind, "n.out", "--plots", "p"), (*fuse, "--plots", "p")):
        with pytest.raises(ScoreError, match="has no labels, and"):
            run(*given)
    (folder / "blind.txt").write_text("s0/0.wav s1/0.wav\n1 s0/0.wav s0/1.wav\n")
    with pytest.raises(ScoreError, match="line 2: expected"):
        run(*blind, "n.out")
    mixed = (folder / "json.out").read_text().replace("\t-\t", "\t1\t", 1)
    (folder / "mixed.out").write_text(mixed)
    with pytest.raises(ScoreError, match="275 of 276 trials have no label, the others do"):
        score_files.read(folder / "mixed.out")
    assert not (folder / "n.out").exists()


def test_no_errors_are_not_no_error_rate(folder):
    trials = Trials(list("aabb"), list("abba"), [True, False, True, False])
    score_files.ScoreFile(trials, np.array([1.0, 0.0, 1.0, 0.0]), {}, {"system": "x"}).save(folder / "a.txt")
    score_files.ScoreFile(trials, np.array([0.9, 0.2, 1.0, 0.0]), {}, {"system": "y"}).save(folder / "b.txt")
    told = run("fuse", "a.txt", "b.txt", "--learn", "f.json", "--out", "f.txt", "--plots", "pics")
    assert "there are no errors, which of 2 trials" in told.stderr
    assert (folder / "pics" / "det.png").stat().st_size > 1000


def test_verify_looks_at_its_calibration_first(folder, monkeypatch):
    of_another = calibration.Calibration(["x@0:cosine"], [], [1.0], 0.0, 0.5, 10, 5, 0.0)
    of_another.save(folder / "mine" / "calibration.json")
    monkeypatch.setattr(verify, "embed_files", lambda *_: pytest.fail("recordings were embedded"))
    with pytest.raises(ScoreError, match=r"calibration\.json: the calibration was made for x@0:cosine"):
        run("verify", "in/p0/0.wav", "in/p1/0.wav", "--model", "./mine")
    with pytest.raises(SpeechError, match="--threshold 7: it is a cosine, between -1 and 1"):
        run("verify", "in/p0/0.wav", "in/p1/0.wav", "--model", "./mine", "--threshold", "7")
    with pytest.raises(SpeechError, match="whatever mistakes cost"):
        run("verify", "in/p0/0.wav", "in/p1/0.wav", "--model", "./mine", "--threshold", "0.3", "--cost-false", "9")
