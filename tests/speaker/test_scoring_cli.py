"""Commands on lists of trials, as a user meets them: from recordings to calibrated ratios."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import speaker
from engine import audio
from engine.features import kaldi_fbank
from recipes import balance
from recipes import calibrate as calibrate_recipe
from recipes.harness.data import Utterance
from speaker import score_files
from speaker.adapt import mean_embeddings
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.cli import app
from speaker.metrics import act_dcf, cllr, min_cllr, split
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.verify import compare

SPEAKERS, TAKES = 8, 4


def buzz(number, take, seconds=1.5):
    """A voice of its own, other words at each take."""
    rng = np.random.default_rng((number, take))
    time = np.arange(int(seconds * 16000)) / 16000
    partials = [
        np.sin(2 * np.pi * (100 + 23 * number) * k * time + rng.uniform(0, 6)) / (1 + abs(k - 2 - number))
        for k in range(1, 14)
    ]
    return (0.1 * sum(partials) + 0.005 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained encoder, voices in `in/`, a list of all pairs."""
    path = tmp_path_factory.mktemp("score")
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval()
    speaker.save(path / "mine", encoder, "# mine")
    names = []
    for number in range(SPEAKERS):
        (path / "in" / f"s{number}").mkdir(parents=True)
        for take in range(TAKES):
            names.append(f"s{number}/{take}.wav")
            audio.save(path / "in" / names[-1], torch.from_numpy(buzz(number, take))[None], 16000)
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    (path / "trials.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    return path


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_from_recordings_to_ratios(run, folder):
    given = ["--trials", "trials.txt", "--root", "in", "--model", "./mine"]
    found = json.loads(run("score", *given, "--out", "raw.txt", "--json").stdout)
    assert found["targets"] == SPEAKERS * TAKES * (TAKES - 1) // 2 and found["eer"][0] < 40
    assert found["eer"][1] <= found["eer"][0] <= found["eer"][2] and "act_dcf" not in found
    scores = score_files.read(folder / "raw.txt")
    a, b = scores.trials.enrol[0], scores.trials.test[0]
    assert scores.scores[0] == pytest.approx(compare(folder / "in" / a, folder / "in" / b, "./mine").cosine, abs=1e-5)
    assert "trials" in run("calibrate", "raw.txt", "--out", "c.json").stdout
    ratios = json.loads(run("score", *given, "--out", "llr.txt", "--calibration", "c.json", "--json").stdout)
    assert ratios["calibrated"] and ratios["cllr"][0] < 1 and ratios["cllr"][0] - ratios["min_cllr"][0] < 0.1
    targets, others = split(score_files.read(folder / "llr.txt").scores, scores.trials.labels)
    expected = {"cllr": cllr(targets, others), "min_cllr": min_cllr(targets, others),
                "act_dcf": act_dcf(targets, others)}  # fmt: skip
    for name, value in expected.items():
        assert ratios[name][0] == pytest.approx(value, abs=1e-6) and ratios[name][1] <= value <= ratios[name][2]
    text = run("score", *given, "--out", "cut.txt", "--seconds", "1").stdout
    assert "EER" in text and "from" not in text.splitlines()[0]


def test_what_does_not_fit_is_refused_before_anything_is_embedded(run, folder, monkeypatch):
    given = ["--trials", "trials.txt", "--root", "in", "--model", "./mine", "--out", "never.txt"]
    run("score", *given[:-1], "some.txt")
    run("calibrate", "some.txt", "--out", "some.json")
    run("embed", "in", "--model", "./mine", "--out", "some.npz")
    run("plda", "some.npz", "--dim", "4", "--out", "some_plda.npz")
    with np.load(folder / "some.npz") as parts:
        stored = dict(parts)
        np.savez(folder / "other.npz", **{**stored, "model": np.array("mine@0123456789ab")})
        np.savez(folder / "narrow.npz", **{**stored, "embeddings": stored["embeddings"][:, :8]})
    run("plda", "narrow.npz", "--out", "narrow_plda.npz")
    monkeypatch.setattr("speaker.collections.embed_files", lambda *_: pytest.fail("recordings are embedded"))
    with pytest.raises(Exception, match=r"calibration was made for .*cosine, the scores are of .*cosine\+s"):
        run("score", *given, "--norm", "s", "--cohort", "some.npz", "--calibration", "some.json")
    with pytest.raises(Exception, match="the cohort is of mine@0123456789ab"):
        run("score", *given, "--norm", "s", "--cohort", "other.npz")
    with pytest.raises(Exception, match="trained on 8 dimensions"):
        run("score", *given, "--backend", "plda", "--plda", "narrow_plda.npz")
    with pytest.raises(Exception, match=r"--top 0: take 2"):
        run("score", *given, "--norm", "as", "--cohort", "some.npz", "--top", "0")
    assert not (folder / "never.txt").exists()


def test_normalized_with_a_cohort_and_by_plda_from_ready_embeddings(run, folder):
    run("embed", "in", "--model", "./mine", "--out", "e.npz")
    listed = (folder / "trials.txt").read_text().replace(" s", " in/s")
    (folder / "listed.txt").write_text(listed)
    (folder / "few_listed.txt").write_text("1 in/s0/0.wav in/s0/1.wav\n0 in/s0/0.wav in/s1/1.wav\n")
    given = ["--trials", "listed.txt", "--embeddings", "e.npz"]
    run("score", *given, "--out", "as.txt", "--norm", "as", "--top", "4", "--cohort", "e.npz")
    assert set(score_files.read(folder / "as.txt").quality) == {"magnitude", "seconds", "cohort"}
    (folder / "utt2spk").write_text("".join(f"{name} {name}\n" for name in np.load(folder / "e.npz")["names"]))
    run("score", *given, "--out", "own.txt", "--norm", "as", "--top", "4", "--cohort", "e.npz", "--utt2spk", "utt2spk")
    assert not np.allclose(score_files.read(folder / "as.txt").scores, score_files.read(folder / "own.txt").scores)
    with pytest.raises(Exception, match="--utt2spk says who speaks in the recordings of a --cohort"):
        run("score", *given, "--out", "x.txt", "--norm", "as", "--utt2spk", "utt2spk")
    assert "dimensions" in run("plda", "e.npz", "--dim", "5", "--out", "p.npz").stdout
    plda = json.loads(run("score", *given, "--out", "p.txt", "--backend", "plda", "--plda", "p.npz", "--json").stdout)
    plain = json.loads(run("score", *given, "--out", "c.txt", "--json").stdout)
    assert plda["eer"][0] <= plain["eer"][0]  # trained on these very voices
    fused = json.loads(run("fuse", "as.txt", "p.txt", "--learn", "f.json", "--out", "f.txt", "--json").stdout)
    assert fused["cllr"][0] < 1
    again = json.loads(run("fuse", "as.txt", "p.txt", "--fusion", "f.json", "--out", "f2.txt", "--json").stdout)
    assert again["cllr"] == fused["cllr"]
    with pytest.raises(Exception, match="made for the files in another order"):
        run("fuse", "p.txt", "as.txt", "--fusion", "f.json", "--out", "f3.txt")
    run("calibrate", "p.txt", "--out", "one.json")
    with pytest.raises(Exception, match=r"one.json is a calibration of one system; `speaker fuse --learn`"):
        run("fuse", "as.txt", "p.txt", "--fusion", "one.json", "--out", "f3.txt")
    # Is one better than the other? The same speakers are drawn for both.
    gap = json.loads(run("compare", "c.txt", "p.txt", "--json").stdout)
    assert gap["eer"][0] == pytest.approx(plain["eer"][0] - plda["eer"][0]) and gap["eer"][1] <= gap["eer"][2]
    line = run("compare", "c.txt", "c.txt").stdout.splitlines()[0]
    assert line.split() == ["EER,", "%", "+0.00", "[+0.00,", "+0.00]"]
    run("score", "--trials", "few_listed.txt", "--embeddings", "e.npz", "--out", "few_listed.out")
    with pytest.raises(Exception, match="scores other trials"):
        run("compare", "c.txt", "few_listed.out")


def test_what_is_there_is_not_overwritten(run, folder):
    given = ["--trials", "trials.txt", "--root", "in", "--model", "./mine"]
    run("score", *given, "--out", "kept.txt")
    run("embed", "in", "--model", "./mine", "--out", "kept.npz")
    trials, kept = (folder / "trials.txt").read_bytes(), (folder / "kept.npz").read_bytes()
    for arguments, message in (
        (["score", *given, "--out", "trials.txt", "--force"], "trials.txt is read by this command too"),
        (["score", *given, "--out", "kept.txt"], "kept.txt exists; --force overwrites it"),
        (["score", *given, "--out", "nowhere/x.txt"], "no such folder to write x.txt to"),
        (["score", *given, "--out", "x.txt", "--prior", "0"], "--prior 0: it lies between 0 and 1"),
        (["score", *given, "--out", "x.txt", "--cohort", "kept.npz"], "--cohort is for --norm s, as and near"),
        (["score", "--trials", "trials.txt", "--embeddings", "kept.npz", "--out", "x.txt", "--seconds", "1"],
         "--seconds cuts recordings"),
        (["score", "--trials", "trials.txt", "--root", "in", "--out", "x.txt", "--seconds", "nan"],
         "--seconds nan: it is a number of seconds"),
        (["plda", "kept.npz", "--out", "kept.npz", "--force"], "read by this command too"),
        (["calibrate", "kept.txt", "--out", "kept.txt", "--force"], "read by this command too"),
        (["fuse", "kept.txt", "kept.txt", "--learn", "f.json", "--out", "kept.txt", "--force"], "read by this command"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=message):
            run(*arguments)
    assert (folder / "trials.txt").read_bytes() == trials and (folder / "kept.npz").read_bytes() == kept
    # Nothing that can be embedded: what was there stays.
    (folder / "broken.wav").write_text("hello")
    with pytest.raises(Exception, match="none of 1 recordings can be embedded"):
        run("embed", "broken.wav", "--model", "./mine", "--out", "kept.npz", "--force")
    assert (folder / "kept.npz").read_bytes() == kept


def test_a_plda_is_of_one_encoder_and_one_calibration_of_one_plda(run, folder):
    run("embed", "in", "--model", "./mine", "--out", "a.npz", "--force")
    names = np.load(folder / "a.npz")["names"].tolist()
    (folder / "utt2spk").write_text("".join(f"{name} {name.split('/')[-2]}\n" for name in names))
    for dim in (4, 6):
        run("plda", "a.npz", "--dim", dim, "--out", f"p{dim}.npz", "--utt2spk", "utt2spk")
    (folder / "l.txt").write_text((folder / "trials.txt").read_text().replace(" s", " in/s"))
    given = ["--trials", "l.txt", "--backend", "plda", "--plda"]
    run("score", *given, "p4.npz", "--embeddings", "a.npz", "--out", "p4.txt")
    run("calibrate", "p4.txt", "--out", "p4.json")
    run("score", *given, "p4.npz", "--embeddings", "a.npz", "--out", "p4.llr", "--calibration", "p4.json")
    with pytest.raises(Exception, match="the calibration was made for"):
        run("score", *given, "p6.npz", "--embeddings", "a.npz", "--out", "p6.llr", "--calibration", "p4.json")
    with np.load(folder / "a.npz") as parts:
        np.savez(folder / "b.npz", **{**parts, "model": np.array("mine@0123456789ab")})
    with pytest.raises(Exception, match="p4.npz was trained on embeddings of mine@"):
        run("score", *given, "p4.npz", "--embeddings", "b.npz", "--out", "b.txt")
    with pytest.raises(Exception, match="is of mine@0123456789ab"):
        run("plda", "a.npz", "--out", "c.npz", "--adapt", "b.npz")
    (folder / "utt2spk").write_text("x y\n")
    with pytest.raises(Exception, match="does not say who speaks in"):
        run("plda", "a.npz", "--out", "c.npz", "--utt2spk", "utt2spk")


def test_seconds_that_are_not_known_of_all(run, folder):
    run("embed", "in", "--model", "./mine", "--out", "timed.npz")
    values = dict(np.load(folder / "timed.npz"))
    values["seconds"][0], first = np.nan, values["names"][0]
    np.savez(folder / "timed.npz", **values)
    pairs = (folder / "trials.txt").read_text().replace(" s", " in/s").splitlines()
    for listed, known in ((pairs, False), ([pair for pair in pairs if first not in pair], True)):
        (folder / "timed.txt").write_text("\n".join(listed))
        found = run("score", "--trials", "timed.txt", "--embeddings", "timed.npz", "--force", "--out", "timed.out")
        assert ("seconds" in score_files.read(folder / "timed.out").quality) == known
        assert (f"the seconds of 1 recordings are not known, the first is {first}" in found.stderr) != known


def test_enrolment_from_several_recordings(run, folder):
    (folder / "spk2utt").write_text("alice s0/0.wav s0/1.wav\nbob s1/0.wav\n")
    (folder / "few.txt").write_text("alice s0/2.wav target\nalice s1/2.wav nontarget\nbob s1/2.wav target\n")
    run("score", "--trials", "few.txt", "--root", "in", "--model", "./mine", "--enrol", "spk2utt", "--out", "few.out")
    scores = score_files.read(folder / "few.out")
    encoder = speaker.load(folder / "mine")
    vectors = [encoder(audio.load(folder / "in" / f"s0/{k}.wav", 16000)[0])[0].double() for k in range(3)]
    unit = [v / v.norm() for v in vectors]
    mean = (unit[0] + unit[1]) / 2
    assert scores.scores[0] == pytest.approx(float(mean @ unit[2] / mean.norm()), abs=1e-5)
    seconds, length = scores.quality["seconds"], scores.quality["magnitude"]
    assert seconds[0, 0] > 1.5 * seconds[2, 0]
    # As long as the embeddings of its recordings, or it would look worse than any of them.
    assert length[0, 0] == pytest.approx(float(vectors[0].norm() + vectors[1].norm()) / 2, rel=1e-4)
    (folder / "own.txt").write_text("alice s0/1.wav target\nalice s1/2.wav nontarget\n")
    given = ["--trials", "own.txt", "--root", "in", "--model", "./mine"]
    told = run("score", *given, "--enrol", "spk2utt", "--out", "o.out")
    assert "1 trials compare a model with a recording that it is enrolled from" in told.stderr
    assert "of fewer than 5 speakers" in told.stderr
    with pytest.raises(Exception, match="need --enrol"):
        run("score", *given, "--out", "p.out")


def test_pictures(run, folder):
    given = ["--trials", "trials.txt", "--root", "in", "--model", "./mine", "--out", "raw.txt", "--force", "--plots"]
    run("score", *given, "pics")
    with pytest.raises(Exception, match="pics holds det.png, scores.png, map.png; --force overwrites them"):
        run("score", *given[:-4], "--out", "drawn.txt", "--plots", "pics")
    with pytest.raises(Exception, match=r"trials.txt: it is a file; name a folder"):
        run("score", *given, "trials.txt")
    assert {p.name for p in (folder / "pics").iterdir()} == {"det.png", "scores.png", "map.png"}
    assert all(p.stat().st_size > 5_000 for p in (folder / "pics").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "none.txt", "--root", "in"], "no trial list"),
        (["--trials", "empty.txt", "--root", "in"], "holds no trials"),
        (["--trials", "same.txt", "--root", "in"], "of one kind"),
        (["--trials", "lost.txt", "--root", "in"], "1 of 3 recordings are not below in, the first is s0/9.wav"),
        (["--trials", "trials.txt"], "either --root"),
        (["--trials", "trials.txt", "--root", "in", "--norm", "z"], "there are none, s, as and near"),
        (["--trials", "trials.txt", "--root", "in", "--norm", "as"], "brings no cohort"),
        (["--trials", "trials.txt", "--root", "in", "--top", "9"], "--top is for --norm as and near, not for none"),
        (
            ["--trials", "trials.txt", "--root", "in", "--norm", "near", "--top", "0", "--cohort", "in"],
            "--top 0: take 2",
        ),
        (["--trials", "trials.txt", "--root", "in", "--backend", "plda"], "together with --plda"),
        (["--trials", "trials.txt", "--embeddings", "nan.npz"], "1 embeddings are 0 or not finite, the first is b"),
        (["--trials", "trials.txt", "--embeddings", "two.npz"], "two.npz has 3 dimensions, embeddings of mine@.* have"),
        (["--trials", "words.txt", "--root", "."], "1 of 3 recordings cannot be embedded, the first: words.wav is not"),
        (["--trials", "blink.txt", "--root", "."], r"the first: blink.wav: 0.01 s are too short"),
        (["--trials", "trials.txt", "--root", "in", "--norm", "s", "--cohort", "wide.npz"], "the cohort has 3 dimens"),
        (["--trials", "trials.txt", "--root", "in", "--norm", "s", "--cohort", "alone.npz"], "cohort of one speaker"),
        (["--trials", "trials.txt", "--root", "in", "--enrol", "latin.txt"], "latin.txt: no list can be read from it"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_embedded(run, folder, arguments, message):
    (folder / "empty.txt").write_text("")
    (folder / "same.txt").write_text("1 s0/0.wav s0/1.wav\n")
    (folder / "lost.txt").write_text("1 s0/0.wav s0/9.wav\n0 s0/0.wav s1/1.wav\n")
    np.savez(folder / "nan.npz", names=["a", "b"], embeddings=np.array([[1, 2], [np.nan, 1]]))
    np.savez(folder / "two.npz", names=["a", "b"], embeddings=np.ones((2, 3)))
    np.savez(folder / "wide.npz", names=["a/0", "b/0"], embeddings=np.ones((2, 3)))
    np.savez(folder / "alone.npz", names=["a/0", "a/1"], embeddings=np.ones((2, 24)))
    (folder / "words.wav").write_text("hello")
    audio.save(folder / "blink.wav", torch.zeros(1, 200), 16000)
    (folder / "words.txt").write_text("1 in/s0/0.wav words.wav\n0 in/s0/0.wav in/s1/1.wav\n")
    (folder / "blink.txt").write_text("1 in/s0/0.wav blink.wav\n0 in/s0/0.wav in/s1/1.wav\n")
    (folder / "latin.txt").write_bytes("m\xfcller s0/0.wav\n".encode("latin-1"))
    with pytest.raises(Exception, match=message):
        run("score", *arguments, "--model", "./mine", "--out", "never.txt")
    assert not (folder / "never.txt").exists()


def test_verify_with_a_calibration(run, folder):
    """Learned on voices as the recipe does it; the answer has a probability, and too little speech none."""
    import shutil

    shutil.copytree(folder / "mine", folder / "ours", dirs_exist_ok=True)
    samples, utterances, at = [], [], 0
    for number in range(SPEAKERS):
        for take in range(10, 22):
            wav = (buzz(number, take) * 32767).astype(np.int16)
            utterances.append(Utterance(f"{number}_{take}", f"demo/{number}", at, len(wav), f"{number}_{take}"))
            samples.append(wav)
            at += len(wav)
    encoder = speaker.load(folder / "ours")
    joined = np.concatenate(samples)
    speaker.save(folder / "ours", encoder, "# ours\n\n## Calibration\nNot measured.\n")
    before = calibrate_recipe.recordings_of_speakers(encoder, joined, utterances)
    several = calibrate_recipe.recordings_of_speakers(encoder, joined, utterances, workers=2)
    assert several[0] == before[0] and np.allclose(several[1], before[1], atol=1e-5 * np.abs(before[1]).max())
    mean = mean_embeddings(*before)[1].mean(0)
    (folder / "ours" / "calibration.json").write_text("of other weights")
    for change in (balance.Change(), balance.Change(0.5)):
        encoder, told = balance.improved(encoder, folder / "ours", *before, change)
        names, vectors = calibrate_recipe.recordings_of_speakers(encoder, joined, utterances)
        np.testing.assert_allclose(vectors, told, atol=1e-3 * np.abs(told).max())
        assert np.linalg.norm(mean_embeddings(names, vectors)[1].mean(0)) < 0.02 * np.linalg.norm(mean)
        before = names, vectors
    assert not (folder / "ours" / "calibration.json").exists()
    assert (folder / "ours" / "README.md").read_text() == (
        "# ours\n\n## Calibration\nThe mean over the training speakers was moved to 0, wide directions were narrowed "
        "(`recipes.calibrate --balance 0.5`).\nNot measured.\n"
    )
    with pytest.raises(Exception, match="leaves no speaker to take the mean of"):
        balance.improved(encoder, folder / "ours", *before, balance.Change(0.5, 0, ("demo",)))
    with pytest.raises(Exception, match=r"cohort\.npz holds no cohort of these weights"):
        calibrate_recipe.calibrate(encoder, folder / "ours", joined, utterances, None, 0.1, near=True)
    assert "8 speakers" in calibrate_recipe.write_cohort(encoder, folder / "ours", names, vectors)
    told = calibrate_recipe.calibrate(encoder, folder / "ours", joined, utterances, None, 0.1)
    assert not (folder / "ours" / "verification.json").exists()
    calibrate_recipe.calibrate(encoder, folder / "ours", joined, utterances, None, 0.1, near=True)
    assert "8 speakers" in told
    made = json.loads((folder / "ours" / "verification.json").read_text())
    assert made["quality"] == ["seconds", "cohort"] and len(made["weights"]) == 6
    run("score", "--trials", "trials.txt", "--root", "in", "--model", "./ours", "--norm", "as", "--top", "5",
        "--out", "n.txt")  # fmt: skip
    same = run("verify", "in/s5/0.wav", "in/s5/1.wav", "--model", "./ours", "--prior", "0.5")
    other = run("verify", "in/s0/0.wav", "in/s7/1.wav", "--model", "./ours", "--json")
    assert same.exit_code == 0 and "same speaker: log-likelihood ratio +" in same.stdout
    found = json.loads(other.stdout)
    assert other.exit_code == 1 and found["llr"] < 0 and found["posterior"] < 0.5 and found["same"] is False
    # On a list, by the same map.
    (folder / "two.txt").write_text("0 s0/0.wav s7/1.wav\n1 s5/0.wav s5/1.wav\n")
    run("score", "--trials", "two.txt", "--root", "in", "--model", "./ours", "--norm", "near", "--calibration",
        "ours/verification.json", "--out", "two.out")  # fmt: skip
    assert score_files.read(folder / "two.out").scores[0] == pytest.approx(found["llr"], abs=1e-3)
    with pytest.raises(
        Exception,
        match=r"was made for .*:cosine\+cohort50, the scores are of .*:cosine; score with `--norm near --top 50`",
    ):
        run("score", "--trials", "two.txt", "--root", "in", "--model", "./ours", "--calibration",
            "ours/verification.json", "--out", "never.out")  # fmt: skip
    with pytest.raises(Exception, match=r"the scores are of .*:cosine\+cohort50\(own cohort\)"):
        run("score", "--trials", "two.txt", "--root", "in", "--model", "./ours", "--norm", "near", "--cohort", "in",
            "--calibration", "ours/verification.json", "--out", "never.out")  # fmt: skip
    strict = json.loads(
        run("verify", "in/s5/0.wav", "in/s5/1.wav", "--model", "./ours", "--prior", "1e-9", "--json").stdout
    )
    assert strict["same"] is False and strict["posterior"] < 0.5 and strict["llr"] > 0
    audio.save(folder / "short.wav", torch.from_numpy(buzz(0, 0, 0.3))[None], 16000)
    with pytest.raises(Exception, match="not enough speech"):
        run("verify", "short.wav", "in/s0/1.wav", "--model", "./ours")
    # Other weights: the calibration does not hold for them.
    torch.manual_seed(1)
    speaker.save(folder / "ours", SpeakerEncoder(encoder.config).eval(), "# other")
    with pytest.raises(Exception, match="the calibration was made for"):
        run("verify", "in/s5/0.wav", "in/s5/1.wav", "--model", "./ours")


def test_tables_by_what_is_known_of_the_recordings(run, folder):
    names = sorted({name for line in (folder / "trials.txt").read_text().splitlines() for name in line.split()[1:]})
    rows = [f"{name},{'f' if name < 's2' else 'm'},{10 + 3 * k % 7},{name}" for k, name in enumerate(names)]
    (folder / "about.csv").write_text("\n".join(["path,gender,snr,title", *rows]) + "\n")
    given = ["--trials", "trials.txt", "--root", "in", "--model", "./mine"]
    found = json.loads(run("score", *given, "--out", "by.txt", "--by", "about.csv", "--json").stdout)
    assert set(found["by"]) == {"gender", "snr"}
    for table in found["by"].values():
        assert all(row["targets"] >= 30 <= row["nontargets"] for row in table)
    (folder / "part.csv").write_text("\n".join(["path,gender,snr,title", *rows[1:]]) + "\n")
    with pytest.raises(Exception, match=f"does not have 1 of the recordings, the first is {names[0]}"):
        run("score", *given, "--out", "x.txt", "--by", "part.csv")
