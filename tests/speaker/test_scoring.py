"""Cosine, PLDA and normalization against WeSpeaker's and SpeechBrain's numbers, and against what they are made of."""

import struct

import numpy as np
import pytest
import safetensors.numpy

from engine.errors import ScoreError
from speaker import plda, scoring
from speaker.collections import Collection, cohort, enrolled, read_spk2utt, read_utt2spk
from speaker.metrics import eer, split
from speaker.trial_audit import audit
from speaker.trials import Trials, read_trials


def golden(shared, name):
    return safetensors.numpy.load_file(shared / "conformance" / "speaker" / f"{name}.safetensors")


def test_normalization_equals_wespeaker(shared):
    g = golden(shared, "scoring_asnorm")
    names = [str(row) for row in range(len(g["embeddings"]))]
    trials = Trials(*([names[row] for row in column] for column in g["trials"].T), list(g["labels"].astype(bool)))
    backend = scoring.Cosine(g["mean_vector"].astype(np.float64))
    for name, top in (("asnorm", 50), ("asnorm_top10", 10), ("snorm", None)):
        found = scoring.score(trials, names, g["embeddings"], backend, cohort=g["cohort"], top=top)
        np.testing.assert_allclose(found.values, g[f"score.{name}"], atol=5e-4)  # theirs start from rounded cosines
        ready = backend.prepare(g["embeddings"].astype(np.float64))
        cohort = backend.prepare(g["cohort"].astype(np.float64))
        mean, spread = scoring.cohort_statistics(backend, ready, cohort, top)
        np.testing.assert_allclose(mean, g[f"mean.{name}"], atol=1e-5)
        np.testing.assert_allclose(spread, g[f"std.{name}"], atol=1e-5)


def test_nearness_alone_leaves_the_scores_as_they_are():
    rng = np.random.default_rng(0)
    vectors, cohort = rng.normal(size=(4, 6)), rng.normal(size=(30, 6))
    trials = Trials(["0", "1"], ["2", "3"], [True, False])
    plain = scoring.score(trials, list("0123"), vectors, scoring.Cosine())
    found = scoring.score(trials, list("0123"), vectors, scoring.Cosine(), cohort=cohort, top=5, normalize=False)
    assert np.array_equal(found.values, plain.values) and plain.cohort_means is None
    near = np.sort(scoring.unit(vectors) @ scoring.unit(cohort).T, axis=1)[:, -5:].mean(1)
    assert np.allclose(found.cohort_means, [near[:2], near[2:]])


def test_plda_scores_equal_those_of_wespeaker_speechbrain_and_vbx(shared):
    g = golden(shared, "scoring_plda")
    size = len(g["psi"])
    model = plda.Plda(np.zeros(size), np.eye(size), g["mu"], g["transform"], g["psi"], length_norm=False)
    enrol, test = model.prepare(g["enroll"]), model.prepare(g["test"])
    np.testing.assert_allclose(enrol, g["transformed_enroll.plain"], atol=1e-9)
    for count in (1, 3):
        expected = g[f"wespeaker_llr.plain.n{count}"]
        np.testing.assert_allclose(model.matrix(enrol, test, count), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(model.pairs(enrol, test[: len(enrol)], count), np.diag(expected), rtol=1e-9)
        counts = np.full(len(enrol), count)
        np.testing.assert_allclose(model.pairs(enrol, test[: len(enrol)], counts), np.diag(expected), rtol=1e-9)
    np.testing.assert_allclose(model.matrix(enrol, test), g["speechbrain_llr.plain"], rtol=1e-9, atol=1e-9)


def speakers(count=150, times=12, dim=6, seed=0):
    """Embeddings of the two-covariance model itself, away from the origin; between-speaker variances 9 to 1/4."""
    rng = np.random.default_rng(seed)
    between = np.geomspace(9, 0.25, dim)
    voices = rng.normal(size=(count, 1, dim)) * np.sqrt(between)
    x = voices + rng.normal(size=(count, times, dim))
    return x.reshape(-1, dim) + 20, np.repeat(np.arange(count), times), between


def test_em_finds_the_covariances_that_made_the_data():
    x, rows, between = speakers(count=800)
    within_found, between_found = plda._em(x - x.mean(0), rows, np.bincount(rows), 20)
    np.testing.assert_allclose(within_found, np.eye(6), atol=0.06)
    np.testing.assert_allclose(np.diag(between_found), between, rtol=0.15)


def test_training_separates_speakers_better_than_the_cosine():
    x, rows, _ = speakers()
    mix = np.random.default_rng(5).normal(size=(6, 6))
    x = x @ mix.T
    model = plda.train(x[rows < 100], rows[rows < 100], dim=5)
    test, labels = x[rows >= 100][::3], rows[rows >= 100][::3]
    same = labels[:, None] == labels
    off = ~np.eye(len(test), dtype=bool)
    separation = []
    for backend in (model, scoring.Cosine()):
        ready = backend.prepare(test)
        scores = backend.matrix(ready, ready)
        right, wrong = scores[same & off], scores[~same]
        separation.append((right.mean() - wrong.mean()) / np.sqrt(right.var() + wrong.var()))
    assert separation[0] > separation[1] + 0.3
    again = plda.train(x[rows < 100], rows[rows < 100], dim=5)
    np.testing.assert_array_equal(model.psi, again.psi)


def test_adaptation_moves_to_the_new_domain():
    x, rows, _ = speakers()
    model = plda.train(x, rows)
    wide = speakers(seed=3)[0]
    wide = 20 + (wide - 20) * np.array([1, 1, 1, 1, 1, 4.0]) + 7
    adapted = plda.adapt(model, wide)
    np.testing.assert_allclose(adapted.centre, wide.mean(0))
    total = [np.trace(np.linalg.inv(m.transform.T @ m.transform) * 1.0) for m in (model, adapted)]
    assert total[1] > total[0] * 1.05
    np.testing.assert_allclose(plda.adapt(model, x).psi, model.psi, rtol=0.2)


def test_files_of_ours_and_of_kaldi(tmp_path):
    x, rows, _ = speakers()
    model = plda.train(x, rows, dim=4)
    model.save(tmp_path / "p.npz")
    np.testing.assert_array_equal(plda.load(tmp_path / "p.npz").prepare(x), model.prepare(x))

    def vector(v):
        return b"DV \4" + struct.pack("<i", len(v)) + v.astype("<f8").tobytes()

    matrix = b"FM \4" + struct.pack("<i", 4) + b"\4" + struct.pack("<i", 4) + model.transform.astype("<f4").tobytes()
    (tmp_path / "plda").write_bytes(b"\0B<Plda> " + vector(model.mean) + matrix + vector(model.psi) + b"</Plda> ")
    kaldi = plda.load(tmp_path / "plda")
    np.testing.assert_allclose(kaldi.psi, model.psi)
    np.testing.assert_allclose(kaldi.transform, model.transform, rtol=1e-6)
    (tmp_path / "half").write_bytes((tmp_path / "plda").read_bytes()[:60])
    for broken in ("half", "none"):
        with pytest.raises(ScoreError, match="holds no PLDA"):
            plda.load(tmp_path / broken)


def test_what_plda_cannot_learn_from():
    x, rows, _ = speakers(count=5, times=3)
    with pytest.raises(ScoreError, match="two utterances or more"):
        plda.train(x, np.arange(len(x)))
    with pytest.raises(ScoreError, match="1 to 4 dimensions, not 5"):
        plda.train(x, rows, dim=5)
    with pytest.raises(ScoreError, match="trained on 6 dimensions"):
        plda.train(x, rows).prepare(x[:, :5])


def test_missing_and_broken_embeddings_are_named():
    trials = Trials(["a"], ["b"], [True])
    with pytest.raises(ScoreError, match="1 recordings of the list have no embedding, the first is b"):
        scoring.score(trials, ["a"], np.ones((1, 3)), scoring.Cosine())
    with pytest.raises(ScoreError, match="number 1"):
        scoring.score(trials, ["a", "b"], np.array([[1.0, 2], [np.nan, 1]]), scoring.Cosine())
    with pytest.raises(ScoreError, match="cohort has 4 dimensions"):
        scoring.score(trials, ["a", "b"], np.ones((2, 3)), scoring.Cosine(), cohort=np.ones((9, 4)))


def test_many_trials_are_scored_as_few_are():
    rng = np.random.default_rng(0)
    vectors, names = rng.normal(size=(50, 8)), [str(k) for k in range(50)]
    first, second = rng.integers(50, size=(2, 3 * scoring.ROWS + 5))
    trials = Trials([names[k] for k in first], [names[k] for k in second], [True] * len(first))
    found = scoring.score(trials, names, vectors, scoring.Cosine()).values
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, (unit @ unit.T)[first, second], atol=1e-12)


def test_lists_of_both_kinds_and_what_is_odd_about_one(tmp_path):
    (tmp_path / "v.txt").write_text("\ufeff1 a b\n0 a c\n\n0 c a\n1 a c\n1 b b\n")
    (tmp_path / "k.txt").write_text("a b target\na c nontarget\nc a nontarget\na c target\nb b target\n")
    first, second = (read_trials(tmp_path / name) for name in ("v.txt", "k.txt"))
    assert first == second and first.labels == [True, False, False, True, True]
    sentences = audit(first)
    assert [s.split()[0] for s in sentences] == ["1", "2", "1"] and "a and c" in sentences[2]
    assert audit(Trials(["a"], ["b"], [True])) == []
    for text, match in (("1 a\n", "line 1"), ("1 a b\nx a b\n", "line 2: 'x' is no label"), ("\n", "no trials")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ScoreError, match=match):
            read_trials(tmp_path / "bad.txt")


def test_nist_keys(tmp_path):
    path = tmp_path / "key.tsv"
    path.write_text("modelid\tsegmentid\tside\ttargettype\nm1\ts1.sph\ta\ttarget\nm1\ts2.sph\ta\tnontarget\n")
    assert read_trials(path) == Trials(["m1", "m1"], ["s1.sph", "s2.sph"], [True, False])
    path.write_text("\n \n" + path.read_text())
    assert read_trials(path).test == ["s1.sph", "s2.sph"]
    path.write_text("modelid segmentid side\nm1 s1 a\n")
    assert read_trials(path) == Trials(["m1"], ["s1"], [])
    for text, message in {
        "modelid segmentid side targettype\nm1 s1 b target\n": "line 2: side b",
        "modelid segmentid side targettype\nm1 s1 a maybe\n": "line 2: expected modelid",
        "\nmodelid segmentid side targettype\nm1 s1 a maybe\n": "line 3: expected modelid",
        "modelid segmentid side targettype\n": "holds no trials",
    }.items():
        path.write_text(text)
        with pytest.raises(ScoreError, match=message):
            read_trials(path)


def test_nist_enrolment(tmp_path):
    path = tmp_path / "enrollment.tsv"
    path.write_text("modelid\tsegmentid\tside\nm1\ts1.sph\ta\nm2\ts2.sph\ta\nm1\ts3.sph\ta\n")
    assert read_spk2utt(path) == {"m1": ["s1.sph", "s3.sph"], "m2": ["s2.sph"]}
    path.write_text("\n" + path.read_text())
    assert read_spk2utt(path)["m1"] == ["s1.sph", "s3.sph"]
    for text, message in {
        "modelid segmentid side\nm1 s1.sph b\n": "line 2: expected modelid, segmentid and side a",
        "modelid segmentid\nm1\n": "line 2: expected modelid",
        "modelid segmentid\nm1 s1\nm2 s1\nm1 s1\n": "line 4: an utterance of m1 stands there twice",
    }.items():
        path.write_text(text)
        with pytest.raises(ScoreError, match=message):
            read_spk2utt(path)


def test_who_speaks_in_a_list():
    """Folders are speakers, videos of speakers, or all recordings together; target trials tell which."""
    voxceleb = Trials(
        ["id1/x/1.wav", "id1/x/1.wav", "id2/z/1.wav"],
        ["id1/y/1.wav", "id2/z/1.wav", "id2/w/1.wav"],
        [True, False, True],
    )
    first, second = voxceleb.speakers()
    assert first[0] == second[0] == first[1] and first[2] == second[2] == second[1] != first[0]
    flat = Trials(["w/a1", "w/a1", "w/b1", "w/a2"], ["w/a2", "w/b1", "w/b2", "w/c1"], [True, False, True, False])
    first, second = flat.speakers()
    assert first[0] == second[0] == first[3] and first[2] == second[2] == second[1]
    assert len({*first, *second}) == 3
    assert Trials(["s0/a", "s0/a"], ["s0/b", "s1/a"], [True, False]).speakers() == (["s0", "s0"], ["s0", "s1"])


def test_plda_takes_models_and_a_cohort_of_the_lengths_it_was_trained_on(tmp_path):
    """Long embeddings around a mean that is not 0, as converted encoders have: directions alone would be misplaced."""
    rng = np.random.default_rng(0)
    voices, mean = rng.normal(size=(60, 12)), 4 * rng.normal(size=12)

    def takes(count):
        return np.repeat(voices, count, axis=0) * 5 + 3 * rng.normal(size=(60 * count, 12)) + mean

    model = plda.train(takes(4), np.repeat(np.arange(60), 4))
    names = [f"{person}/{take}" for person in range(60) for take in range(4)]
    collection = Collection(names, takes(4), np.ones(240), "x@1")
    spk2utt = {f"m{person}": [f"{person}/{take}" for take in range(3)] for person in range(60)}
    pairs = [(f"m{a}", f"{b}/3", a == b) for a in range(60) for b in range(60)]
    trials = Trials(*(list(column) for column in zip(*pairs, strict=True)))
    joined = enrolled(collection, spk2utt, lengths=True)
    several = scoring.score(trials, joined.names, joined.vectors, model).values
    single = Trials([f"{a[1:]}/0" for a, _, _ in pairs], trials.test, trials.labels)
    alone = scoring.score(single, names, collection.vectors, model).values
    several, alone = (eer(*split(values, trials.labels))[0] for values in (several, alone))
    assert several <= alone < 0.2
    np.savez(tmp_path / "c.npz", names=names, embeddings=collection.vectors, model="x@1")
    means = cohort(tmp_path / "c.npz", None, "x@1", 12, lengths=True)
    np.testing.assert_allclose(means.mean(0), collection.vectors.mean(0), rtol=1e-5)
    np.savez(tmp_path / "d.npz", names=names, embeddings=scoring.unit(collection.vectors), model="x@1")
    with pytest.raises(ScoreError, match="holds directions, and a PLDA needs the lengths"):
        cohort(tmp_path / "d.npz", None, "x@1", 12, lengths=True)


def test_utt2spk_says_who_speaks(tmp_path):
    (tmp_path / "u").write_text("a.wav ann\n\nb.wav bob\n")
    assert read_utt2spk(tmp_path / "u") == {"a.wav": "ann", "b.wav": "bob"}
    (tmp_path / "u").write_text("a.wav ann\na.wav bob\n")
    with pytest.raises(ScoreError, match="line 2: expected a recording, once"):
        read_utt2spk(tmp_path / "u")


def test_utt2spk_joins_the_recordings_of_a_cohort(tmp_path):
    rows = np.eye(6)[:4]
    np.savez(tmp_path / "c.npz", names=["i7-a-1", "i7-b-1", "i9-a-1", "i9-a-2"], embeddings=rows, model="x@1")
    assert len(cohort(tmp_path / "c.npz", None, "x@1", 6)) == 4, "names that tell nothing: each is somebody"
    (tmp_path / "u").write_text("i7-a-1 i7\ni7-b-1 i7\ni9-a-1 i9\ni9-a-2 i9\nelse i8\n")
    means = cohort(tmp_path / "c.npz", None, "x@1", 6, utt2spk=tmp_path / "u")
    np.testing.assert_allclose(means, [rows[:2].mean(0), rows[2:].mean(0)])
    (tmp_path / "u").write_text("i7-a-1 i7\ni7-b-1 i7\ni9-a-1 i7\ni9-a-2 i7\n")
    with pytest.raises(ScoreError, match="cohort of one speaker; .*u says so"):
        cohort(tmp_path / "c.npz", None, "x@1", 6, utt2spk=tmp_path / "u")
    (tmp_path / "u").write_text("")
    with pytest.raises(ScoreError, match="does not say who speaks in 4 recordings, the first is i7-a-1"):
        cohort(tmp_path / "c.npz", None, "x@1", 6, utt2spk=tmp_path / "u")
