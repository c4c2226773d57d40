"""The last layer of an encoder, changed so that embeddings are centred, turned and scaled."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ConfigError
from engine.features import kaldi_fbank
from recipes.directions import NUISANCE, balanced, corpus_directions, evened, facing
from speaker.adapt import mean_embeddings
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import resnet
from speaker.backbones.xvector import XvectorConfig
from speaker.last_layer import transform
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.scoring import unit

NETWORKS = {
    "ecapa": EcapaTdnnConfig(num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8,
                             attention_channels=8, embedding_dim=16, dilations=(2, 3)),
    "without a norm": EcapaTdnnConfig(num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8,
                                      attention_channels=8, embedding_dim=16, dilations=(2,), embedding_norm=False),
    "resnet": resnet(34, channels=4, num_bins=24, embedding_dim=16),
    "x-vector": XvectorConfig(num_bins=24, channels=16, stats_channels=32, embedding_dim=16),
}  # fmt: skip


def encoder_of(network):
    torch.manual_seed(0)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(24), network=network)).eval()
    for module in encoder.modules():  # as after training
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2), nn.init.normal_(module.bias)
    return encoder


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_encoder_gives_the_map_of_what_it_gave(network):
    encoder, rng = encoder_of(network), np.random.default_rng(1)
    wav = torch.from_numpy(rng.normal(0, 0.1, (3, 16_000)).astype(np.float32))
    matrix, offset = rng.normal(size=(16, 16)), rng.normal(size=16)
    with torch.inference_mode():
        before = encoder(wav).double().numpy()
        transform(encoder, matrix, offset)
        np.testing.assert_allclose(encoder(wav).numpy(), before @ matrix.T + offset, rtol=1e-3, atol=1e-3)


def test_turned_to_a_teacher_in_training_as_after():
    encoder, rng = encoder_of(NETWORKS["ecapa"]), np.random.default_rng(1)
    wav = torch.from_numpy(rng.normal(0, 0.1, (400, 4_000)).astype(np.float32) * rng.uniform(0, 1, (400, 1)))
    wav = torch.cumsum(wav.float(), 1) * torch.rand(400, 1) + wav.float()  # of many spectra
    with torch.inference_mode():
        before = encoder(wav).double().numpy()
        teacher = before @ rng.normal(size=(16, 16)) + rng.normal(size=16)
        matrix, offset = facing(before, teacher)
        transform(encoder, matrix, offset, before)
        found = encoder(wav).double().numpy()
        last = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)][-1]
        last.train()
        training = encoder(wav).double().numpy()
    cosines = np.einsum("nd,nd->n", found, teacher) / np.linalg.norm(found, axis=1) / np.linalg.norm(teacher, axis=1)
    assert cosines.mean() > 0.99
    assert np.square(found).mean() == pytest.approx(np.square(before).mean(), rel=1e-2)
    np.testing.assert_allclose(training, found, atol=0.02 * np.abs(found).max())


def test_turned_no_more_than_is_known():
    rng = np.random.default_rng(2)
    teacher = rng.normal(size=(600, 32))
    noise = 1.5 * rng.normal(size=(600, 32))
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0]

    def nearness(vectors):
        fitted = facing(vectors[:200], teacher[:200])
        found = unit(vectors[200:] @ fitted[0].T + fitted[1])
        return (found * unit(teacher[200:])).sum(1).mean()

    as_it_was = (unit(teacher + noise)[200:] * unit(teacher[200:])).sum(1).mean()
    assert nearness(teacher + noise) > as_it_was - 0.01
    assert nearness((teacher + noise) @ rotation) > as_it_was - 0.1


def test_a_network_that_ends_otherwise_is_left_as_it_was():
    encoder = encoder_of(NETWORKS["without a norm"])
    encoder.backbone.register_forward_hook(lambda module, inputs, output: output.tanh())
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ConfigError, match="last layers of EcapaTdnn cannot turn"):
        transform(encoder, 2 * np.eye(16), np.zeros(16))
    with pytest.raises(ConfigError, match="cannot turn"):
        transform(encoder, np.eye(8), np.zeros(8))
    assert all(torch.equal(weights[name], value) for name, value in encoder.state_dict().items())


def test_widest_directions_come_first_and_lose_most():
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    spread = np.array([1.0, 8.0, 2.0, 4.0, 0.5, 0.25])
    vectors = (rng.normal(size=(4000, 6)) * spread) @ turned.T
    ratios = []
    for exponent in (0.0, 0.5, 1.0):
        found = vectors @ balanced(vectors, exponent).T
        covariance = np.cov(found.T)
        wide = np.sqrt(np.diag(covariance))
        assert np.all(np.diff(wide[:4]) < 0.05 * wide[0])  # in order
        off = covariance - np.diag(np.diag(covariance))
        assert np.abs(off).max() < 0.1 * np.diag(covariance).max()
        ratios.append(wide[0] / wide[2])
    assert ratios[0] == pytest.approx(4, rel=0.1)  # 8 to 2
    # By their spread as directions, of which the widest have less: an embedding counts by where it points.
    assert ratios[1] == pytest.approx(np.sqrt(ratios[0] * ratios[2]), rel=0.05) and 1 < ratios[2] < ratios[0] / 2
    np.testing.assert_allclose(balanced(vectors, 0.0) @ balanced(vectors, 0.0).T, np.eye(6), atol=1e-9)


def voices(corpora, speakers, rng):
    """Two embeddings of each speaker; corpora differ in dimension 0 much, in 1 less."""
    names, vectors = [], []
    for corpus in range(corpora):
        for person in range(speakers):
            voice = rng.normal(size=6) + [9.0 * (corpus == 0), 5.0 * (corpus == 1), 0, 0, 0, 0]
            names += [f"corpus{corpus}/{person}"] * 2
            vectors += [voice + 0.1 * rng.normal(size=6) for _ in range(2)]
    return names, np.array(vectors) - np.mean(vectors, 0)


def test_directions_in_which_corpora_differ_are_taken_away():
    names, vectors = voices(3, 400, np.random.default_rng(0))
    found = corpus_directions(names, vectors, 2)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-9)
    assert np.linalg.norm(found[:, :2], axis=1).min() > 0.99  # both within the two dimensions
    matrix = evened(names, vectors, 0.0, 2)
    after = vectors @ matrix.T
    corpora = np.array([name.split("/")[0] for name in names])
    apart, was = (np.ptp([x[corpora == c].mean(0) for c in set(corpora)], axis=0).max() for x in (after, vectors))
    assert apart < 2 * NUISANCE * was and np.linalg.matrix_rank(matrix) == 6
    assert np.square(after).sum() == pytest.approx(np.square(vectors[:, 2:]).sum(), rel=0.1)  # the others are whole
    alone = np.array([name.startswith("corpus2") for name in names])
    np.testing.assert_allclose(evened(names, vectors, 0.5, 0, alone), balanced(vectors[alone], 0.5), atol=1e-9)


def test_few_corpora_or_small_ones_have_no_directions():
    rng = np.random.default_rng(0)
    assert corpus_directions(*voices(1, 30, rng), 3).shape == (0, 6)
    assert corpus_directions(*voices(4, 10, rng), 3).shape == (0, 6)
    assert corpus_directions(*voices(3, 30, rng), 9).shape == (2, 6)
    names, vectors = voices(1, 30, rng)
    np.testing.assert_allclose(evened(names, vectors, 0.5, 0), balanced(vectors, 0.5), atol=1e-9)
    with pytest.raises(ConfigError, match="target_nuisance 3 needs 4 corpora of 20 speakers or more; .* enough for 0"):
        evened(names, vectors, 0.5, 3, option="target_nuisance")


def test_mean_embeddings_do_not_follow_one_that_is_far_too_long():
    vectors = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 100.0], [0.0, 1.0]])
    names, means = mean_embeddings(["a", "a", "a", "b"], vectors)
    assert names == ["a", "b"] and means[0, 1] < 1 and np.allclose(means[1], [0, 1])
