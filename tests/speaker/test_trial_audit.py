"""What is said of a trial list before it is scored."""

from pathlib import Path

from speaker.trial_audit import audit
from speaker.trials import Trials


def test_audit_knows_what_the_model_was_trained_on():
    trials = Trials(["x/vctk/p1/a.wav"], ["x/vctk/p2/b.wav"], [False])
    (sentence,) = audit(trials, ["vctk/p2", "other/p1"])
    assert "trained on 1 of the speakers, such as vctk/p2" in sentence
    # Corpora by the beginning of their names, wherever in the path; enrolment recordings too, models themselves not.
    known = ["librispeech-100/4640", "librispeech-100/12"]
    spoken = Trials(["m", "m"], ["train-clean-100/4640/157/1.flac", "dev/9/1/1.flac"], [True, False])
    models = {"m": ["dev/12/3/1.flac", "dev/9/1/1.flac"]}
    assert audit(spoken, known, {"m": []}) == []
    sentences = audit(spoken, known, models, Path("/data/LibriSpeech"))
    assert "trained on 2 of the speakers, such as librispeech-100/12" in sentences[0]
    assert sentences[1] == "1 trials compare a model with a recording that it is enrolled from"


def test_audit_knows_the_lists_of_voxceleb():
    """Speakers id10270 to id10309 are held out for the list -O; -E and -H are of the others too."""
    of_o = Trials(["id10270/x/1.wav"], ["wav/id10309/y/1.wav"], [False])
    of_e = Trials(["id10270/x/1.wav"], ["wav/id10310/y/1.wav"], [False])
    other = Trials(["id10270/x/1.wav"], ["p225/y/1.wav"], [False])
    assert audit(of_o) == audit(other) == audit(of_e, ["vctk/p2"]) == []
    (sentence,) = audit(of_e)
    assert sentence.startswith("1 of the speakers are of VoxCeleb1's training part")
    names = [f"id10270/x/{k}.wav" for k in range(275)]
    pairs = [(a, b) for k, a in enumerate(names) for b in names[:k]]
    uncleaned = Trials(*map(list, zip(*pairs[:37_611], strict=True)), [True] * 37_611)
    assert audit(uncleaned) == []
    uncleaned = Trials(*map(list, zip(*(pairs + [("id10271/x/1.wav", "id10272/x/1.wav")] * 45)[:37_720], strict=True)),
                       [True] * 37_720)  # fmt: skip
    assert any("VoxCeleb1-O before wrong labels" in sentence for sentence in audit(uncleaned))


def test_audit_knows_voxceleb_in_models_and_by_the_names_of_kaldi():
    models = {"m1": ["id10310/x/1.wav"]}
    for trials, enrolment in (
        (Trials(["m1"], ["id10270/x/1.wav"], [False]), models),
        (Trials(["id10270-x-00001"], ["id10310-y-00001"], [False]), {}),
        (Trials(["id10270.wav"], ["id10310.wav"], [False]), {}),
    ):
        (sentence,) = audit(trials, models=enrolment)
        assert "VoxCeleb1's training part" in sentence
    assert audit(Trials(["id10270/x/1.wav"], ["id11252/x/1.wav"], [False])) == []
