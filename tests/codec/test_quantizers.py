"""One contract over every quantizer and gradient; formulas against slow twins; sums over ranks in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codec.codebooks import AffineQuantizer, CosineQuantizer, EmaQuantizer, SimVQQuantizer
from codec.finite_scalar import FiniteScalarQuantizer
from codec.quantizers import QUANTIZERS, ProductQuantizer, ResidualQuantizer, code_entropy
from codec.vectors import kmeans, nearest, rotate, straight_through
from engine.errors import ConfigError

GRADIENTS = ["straight_through", "rotation"]
DIM, SIZE = 5, 1024
CONTRACT = pytest.mark.parametrize("gradient", GRADIENTS)
KINDS = pytest.mark.parametrize("kind", QUANTIZERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixture(num_vectors: int, dim: int = DIM, num_modes: int = 24) -> torch.Tensor:
    """Vectors (M, d) around fixed random centres of unequal weight, far from the origin on average."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(num_modes, dim, generator=generator) + 0.5
    modes = (torch.rand(num_vectors) ** 2 * num_modes).long()
    return centres[modes] + 0.2 * torch.randn(num_vectors, dim)


def make(kind: str, gradient: str = "straight_through", **options):
    """A quantizer of DIM and SIZE that has been started on data, in evaluation mode."""
    quantizer = QUANTIZERS[kind](DIM, SIZE, gradient=gradient, **options)
    quantizer.initialize(mixture(3000))
    return quantizer.eval()


def distortion(quantizer, z: torch.Tensor) -> float:
    with torch.no_grad():
        return F.mse_loss(quantizer.decode(quantizer.encode(z)), z).item()


class TestContract:
    @KINDS
    @CONTRACT
    def test_shapes_and_round_trip(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(333)
        result = quantizer(z)
        assert result.z_q.shape == z.shape and result.codes.shape == (333,) and result.codes.dtype == torch.int64
        assert result.commitment_loss.shape == result.codebook_loss.shape == ()
        assert result.codes.min() >= 0 and result.codes.max() < SIZE
        assert torch.equal(quantizer.encode(z), result.codes)
        assert torch.equal(quantizer.decode(result.codes), result.z_q)
        assert torch.equal(quantizer.table()[result.codes], result.z_q)
        assert quantizer.decode(result.codes.view(3, 111)).shape == (3, 111, DIM)

    @KINDS
    @CONTRACT
    def test_training_value_is_what_the_decoder_sees(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(100)
        table = quantizer.table().detach().clone()
        result = quantizer.train()(z.requires_grad_())
        assert torch.equal(result.z_q, table[result.codes])

    @KINDS
    @CONTRACT
    def test_gradient_reaches_every_vector(self, kind, gradient):
        quantizer, z = make(kind, gradient).train(), mixture(200).requires_grad_()
        (quantizer(z).z_q * torch.randn(200, DIM)).sum().backward()
        assert z.grad is not None and z.grad.isfinite().all()
        assert (z.grad.norm(dim=1) > 0).all()

    @KINDS
    @CONTRACT
    def test_evaluation_changes_nothing(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(64)
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        for _ in range(3):
            quantizer(z)
        after = quantizer.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    @KINDS
    @CONTRACT
    def test_a_code_does_not_depend_on_its_batch(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(1100)
        codes = quantizer.encode(z)
        for start, stop in [(0, 1), (7, 9), (500, 515), (511, 1027), (1099, 1100)]:
            assert torch.equal(quantizer.encode(z[start:stop]), codes[start:stop])

    @pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind != "fsq"])
    @CONTRACT
    def test_learning_lowers_the_distortion(self, kind, gradient):
        quantizer = QUANTIZERS[kind](DIM, 64, gradient=gradient).train()
        held_out = mixture(2000)
        before = distortion(quantizer, held_out)
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.Adam(parameters, lr=0.03) if parameters else None
        for _ in range(60):
            loss = quantizer(mixture(256)).codebook_loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert distortion(quantizer, held_out) < 0.6 * before

    @KINDS
    def test_starting_from_data_lowers_the_distortion(self, kind):
        quantizer, z = QUANTIZERS[kind](DIM, SIZE), 3 * mixture(4000)
        before = distortion(quantizer, z)
        quantizer.initialize(z)
        assert distortion(quantizer, z) < 0.5 * before

    @KINDS
    def test_state_dict_restores_the_codes(self, kind):
        source, z = make(kind), mixture(500)
        copy = QUANTIZERS[kind](DIM, SIZE)
        copy.load_state_dict(source.state_dict())
        assert torch.equal(copy.eval()(z).z_q, source(z).z_q)

    @KINDS
    def test_unknown_gradient_is_refused(self, kind):
        with pytest.raises(ConfigError, match="straight_through, rotation"):
            QUANTIZERS[kind](DIM, SIZE, gradient="none")


class TestSearch:
    @pytest.mark.parametrize("num_entries", [7, 64, 100, 1024])
    @pytest.mark.parametrize("num_vectors", [0, 1, 3, 4, 31, 32, 512, 514, 1030])
    def test_equals_the_full_table_of_distances(self, num_entries, num_vectors):
        z, table = torch.randn(num_vectors, 8), torch.randn(num_entries, 8)
        distance = (z.double()[:, None] - table.double()).square().sum(-1)
        assert torch.equal(nearest(z, table), distance.argmin(1))

    @pytest.mark.parametrize("num_entries", [100, 128])
    @pytest.mark.parametrize("num_vectors", [1, 50])
    def test_ties_take_the_lowest_index(self, num_entries, num_vectors):
        table = torch.randn(num_entries, 8)
        table[[90, 70, 20]] = table[5].clone()  # in the same block of 64 and in another
        assert (nearest(table[5].expand(num_vectors, 8), table) == 5).all()

    @pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the last bit was only studied with MKL")
    @pytest.mark.parametrize("threads", [1, 2])
    def test_last_bit_does_not_depend_on_the_batch(self, threads):
        """All entries are equally far from z but for rounding, so a single different bit picks another one."""
        z = torch.randn(8)
        table = z + F.normalize(torch.randn(1024, 8), dim=1)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            codes = [nearest(z.expand(size, 8), table) for size in (1, 2, 3, 4, 5, 6, 11, 31, 100, 511, 513, 1300)]
        finally:
            torch.set_num_threads(before)
        assert len(torch.cat(codes).unique()) == 1

    def test_kmeans_beats_random_members(self):
        z = mixture(3000)
        centres, counts = kmeans(z, 64)
        members = z[torch.randperm(len(z))[:64]]
        error = (z - centres[nearest(z, centres)]).square().mean()
        assert counts.sum() == 3000 and (counts > 0).all()
        assert error < 0.75 * (z - members[nearest(z, members)]).square().mean()

    def test_kmeans_with_fewer_vectors_than_clusters(self):
        z = mixture(10)
        centres, _ = kmeans(z, 64)
        assert centres.isfinite().all() and len(centres.unique(dim=0)) == 64
        assert (z - centres[nearest(z, centres)]).abs().max() < 0.2

    def test_kmeans_of_one_repeated_vector(self):
        centres, counts = kmeans(torch.ones(100, 3), 8)
        assert torch.allclose(centres, torch.ones(8, 3)) and counts.sum() == 100


def rotation_matrix(z: torch.Tensor, z_q: torch.Tensor) -> torch.Tensor:
    """The slow twin: |q|/|z| (I - 2 w w' + 2 v u') written out."""
    u, v = z / z.norm(), z_q / z_q.norm()
    w = (u + v) / (u + v).norm()
    eye = torch.eye(len(z), dtype=z.dtype)
    return z_q.norm() / z.norm() * (eye - 2 * torch.outer(w, w) + 2 * torch.outer(v, u))


class TestRotation:
    def test_gradient_is_the_matrix(self):
        z, z_q = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
        for row, target in zip(z, z_q, strict=True):
            jacobian = torch.autograd.functional.jacobian(lambda x, q=target: rotate(x[None], q[None])[0], row)
            matrix = rotation_matrix(row, target)
            assert torch.allclose(jacobian, matrix)
            assert torch.allclose(matrix @ row, target)

    def test_value_is_exact(self):
        z, z_q = torch.randn(500, 8), 3 * torch.randn(500, 8)
        assert torch.equal(rotate(z, z_q), z_q) and torch.equal(straight_through(z, z_q), z_q)

    @pytest.mark.parametrize("closeness", [0.0, 1e-7, 1e-5])
    def test_opposite_vectors_keep_an_orthogonal_map(self, closeness):
        z = torch.tensor([3.0, 4.0, 0.0])
        z_q = -z + closeness * torch.tensor([0.0, 0.0, 1.0])
        jacobian = torch.autograd.functional.jacobian(lambda x: rotate(x[None], z_q[None])[0], z)
        assert torch.allclose(jacobian @ jacobian.t(), torch.eye(3), atol=1e-4)
        assert torch.allclose(jacobian @ z, z_q, atol=1e-4)

    def test_opposite_up_to_rounding_keeps_the_length_of_a_gradient(self):
        """u + v is then rounding error in any direction, u's own included: as an axis it would triple gradients."""
        z, weight = torch.randn(2000, 8, requires_grad=True), torch.randn(2000, 8)
        (gradient,) = torch.autograd.grad((rotate(z, -1.7 * z.detach()) * weight).sum(), z)
        assert torch.allclose(gradient.norm(dim=1), 1.7 * weight.norm(dim=1), rtol=1e-3)

    @pytest.mark.parametrize("which", ["z", "z_q", "both"])
    def test_zero_vectors_fall_back_to_straight_through(self, which):
        z = torch.zeros(1, 4) if which != "z_q" else torch.randn(1, 4)
        z_q = torch.zeros(1, 4) if which != "z" else torch.randn(1, 4)
        z.requires_grad_()
        weight = torch.randn(1, 4)
        (rotate(z, z_q) * weight).sum().backward()
        assert torch.equal(z.grad, weight)


class TestCosine:
    def test_published_formulas(self):
        quantizer, z = CosineQuantizer(8, 64), torch.randn(50, 8, requires_grad=True)
        table = quantizer.embedding.weight
        similarity = F.normalize(z.double(), dim=1) @ F.normalize(table.double(), dim=1).t()
        result = quantizer(z)
        assert torch.equal(result.codes, similarity.argmax(1))
        expected = table[result.codes]
        assert torch.equal(result.z_q, expected)
        (result.commitment_loss + 3 * result.codebook_loss).backward()
        difference = 2 * (z - expected).detach() / z.numel()
        assert torch.allclose(z.grad, difference)
        assert torch.allclose(table.grad, torch.zeros(64, 8).index_add_(0, result.codes, -3 * difference))


class TestEma:
    def quantizer(self, **options):
        quantizer = EmaQuantizer(2, 4, **options).train()
        quantizer.initialize(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(8, 1))
        return quantizer

    def test_update_formula(self):
        quantizer, z = self.quantizer(decay=0.9, restart_below=0.0), torch.rand(10, 2)
        codes, usage, sums = quantizer.encode(z), quantizer.usage.clone(), quantizer.embedding_sum.clone()
        quantizer(z)
        hot = F.one_hot(codes, 4).float()
        usage = 0.9 * usage + 0.1 * hot.sum(0) * 4 / 10
        sums = 0.9 * sums + 0.1 * (hot.t() @ z) * 4 / 10
        smooth = (usage + 1e-5) / (usage.sum() + 4e-5) * usage.sum()
        assert torch.allclose(quantizer.usage, usage) and torch.allclose(quantizer.embedding_sum, sums)
        assert torch.allclose(quantizer.embedding, sums / smooth[:, None])

    def test_codebook_loss_is_zero_and_commitment_is_not(self):
        quantizer, z = self.quantizer(), torch.rand(10, 2, requires_grad=True)
        result = quantizer(z)
        assert result.codebook_loss == 0 and result.commitment_loss > 0
        result.commitment_loss.backward()
        assert torch.allclose(z.grad, 2 * (z - result.z_q).detach() / z.numel())

    def test_starts_by_itself_on_the_first_training_batch_only(self):
        quantizer, z = EmaQuantizer(DIM, 16), mixture(500)
        quantizer.eval()(z)
        assert not quantizer.initialized
        before = distortion(quantizer, z)
        quantizer.train()(z)
        assert quantizer.initialized and distortion(quantizer, z) < 0.5 * before

    def test_restart_replaces_the_entry_and_both_sums(self):
        quantizer = self.quantizer(decay=0.99, restart_below=0.1)
        dead = int(quantizer.encode(torch.ones(1, 2)))
        quantizer.usage[dead], quantizer.embedding_sum[dead] = 0.05, 0.05
        z = torch.tensor([[-0.3, 0.1], [-0.2, 0.2]])  # neither falls on the dead entry
        quantizer(z)
        entry = quantizer.embedding[dead]
        assert (entry - z).abs().sum(1).min() < 1e-3
        assert quantizer.usage[dead] == 1.0
        assert (quantizer.embedding_sum[dead] - z).abs().sum(1).min() < 1e-6
        # The next update must not drag it back: that is what a kept sum would do.
        quantizer(z)
        assert (quantizer.embedding[dead] - entry).norm() < 0.01

    def test_no_entry_dies_where_plain_averages_lose_most(self):
        usage = {}
        for restart_below in (0.0, 0.1):
            torch.manual_seed(0)
            quantizer = EmaQuantizer(DIM, 128, decay=0.9, restart_below=restart_below).train()
            quantizer.initialize(0.1 * mixture(1000))
            for _ in range(80):
                quantizer(4 * mixture(256))
            usage[restart_below] = code_entropy(quantizer.encode(4 * mixture(4000)).view(1, 1, -1), 128).item()
        assert usage[0.1] > 5.5 > usage[0.0]

    def test_more_dead_entries_than_vectors(self):
        quantizer = EmaQuantizer(DIM, 64).train()
        quantizer.initialize(mixture(500))
        quantizer.usage.zero_()
        quantizer(mixture(3))
        assert quantizer.embedding.isfinite().all()

    def test_bad_options_are_refused(self):
        with pytest.raises(ConfigError, match="restart_below < restart_usage"):
            EmaQuantizer(2, 4, restart_below=1.0)


class TestSimVQ:
    def test_only_the_map_learns_and_moves_every_entry(self):
        quantizer, z = SimVQQuantizer(DIM, 32), mixture(8)
        before, frozen = quantizer.table().detach().clone(), quantizer.frozen.clone()
        assert {name for name, _ in quantizer.named_parameters()} == {"map.weight", "map.bias"}
        quantizer(z).codebook_loss.backward()
        torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
        assert torch.equal(quantizer.frozen, frozen)
        assert (quantizer.table() != before).any(dim=1).all()

    def test_start_gives_entries_the_moments_of_the_data(self):
        quantizer, z = SimVQQuantizer(3, 4096), torch.randn(4000, 3) @ torch.randn(3, 3) + 5
        quantizer.initialize(z)
        table = quantizer.table().detach()
        assert torch.allclose(table.mean(0), z.mean(0), atol=0.2)
        assert torch.allclose(table.t().cov(), z.t().cov(), atol=0.15 * z.t().cov().abs().max())


class TestAffine:
    def test_formula_and_gradients(self):
        """Twin of c = (1 + a s) e + a b and z_q = z + sg(z_q - z) + nu z_q - sg(nu z_q), by autograd on the formula."""
        quantizer = AffineQuantizer(DIM, 32, affine_rate=4.0, nu=0.3)
        with torch.no_grad():
            quantizer.scale.normal_(std=0.1)
            quantizer.bias.normal_(std=0.1)
        z = mixture(40).requires_grad_()
        tensors = [z, quantizer.embedding.weight, quantizer.scale, quantizer.bias]
        twin_tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        twin_z, embedding, scale, bias = twin_tensors
        result = quantizer(z)
        entries = ((1 + 4.0 * scale) * embedding + 4.0 * bias)[result.codes]
        twin = twin_z + (entries - twin_z).detach() + 0.3 * entries - (0.3 * entries).detach()
        weight = torch.randn(40, DIM)
        loss = (twin * weight).sum() + F.mse_loss(twin_z, entries.detach()) + 2 * F.mse_loss(entries, twin_z.detach())
        assert torch.allclose(result.z_q, twin, atol=1e-6)
        expected = torch.autograd.grad(loss, twin_tensors)
        loss = (result.z_q * weight).sum() + result.commitment_loss + 2 * result.codebook_loss
        for ours, theirs in zip(torch.autograd.grad(loss, tensors), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


class TestFiniteScalar:
    @pytest.mark.parametrize("levels", [(4, 4, 4, 4, 4), (8, 5, 5, 5), (3, 7)])
    @pytest.mark.parametrize("started", [False, True])
    def test_codes_are_bijective(self, levels, started):
        size = int(np.prod(levels))
        quantizer = FiniteScalarQuantizer(len(levels), size, levels=levels)
        if started:
            quantizer.initialize(2 + torch.randn(1000, len(levels)))
        table = quantizer.table()
        assert len(table.unique(dim=0)) == size
        # Back through tanh: the vector at the heart of each cell must get that cell's code.
        integers = (table - quantizer.bias) / quantizer.gain
        hearts = torch.atanh((integers + quantizer.offset) / quantizer.half_width) * quantizer.scale + quantizer.centre
        assert torch.equal(quantizer.encode(hearts), torch.arange(size))

    def test_published_formula(self):
        levels = np.array([8, 5, 5, 5])
        quantizer, z = FiniteScalarQuantizer(4, 1000), 2 * torch.randn(300, 4)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0)
        q = np.round(np.tanh(z.double().numpy() + np.arctanh(offset / half)) * half - offset)
        code = ((q + levels // 2) * np.array([1, 8, 40, 200])).sum(1)
        assert np.array_equal(quantizer.encode(z).numpy(), code)
        assert np.allclose(quantizer(z).z_q.numpy(), q / (levels // 2))

    def test_gradient_passes_rounding_only(self):
        quantizer, z = FiniteScalarQuantizer(5, 1024), torch.randn(20, 5, requires_grad=True)
        quantizer(z).z_q.sum().backward()
        twin = z.detach().clone().requires_grad_()
        (1.5015 * torch.tanh(twin + np.arctanh(0.5 / 1.5015)) / 2).sum().backward()
        assert torch.allclose(z.grad, twin.grad)

    def test_extremes_stay_in_range(self):
        quantizer = FiniteScalarQuantizer(5, 1024)
        assert quantizer.encode(torch.tensor([[1e9] * 5, [-1e9] * 5])).tolist() == [1023, 0]

    @pytest.mark.parametrize("options", [{}, {"levels": [4, 4]}, {"levels": [4, 4, 4, 4, 2, 2, 1, 1]}])
    def test_levels_must_fit(self, options):
        with pytest.raises(ConfigError, match="FSQ needs"):
            FiniteScalarQuantizer(8, 1024, **options)


def product(kind: str, joint: bool, gradient: str = "straight_through") -> ProductQuantizer:
    quantizer = ProductQuantizer(32, 3, DIM, SIZE, kind=kind, joint=joint, gradient=gradient)
    quantizer.initialize(torch.randn(4, 300, 32))
    return quantizer.eval()


class TestProduct:
    @KINDS
    @CONTRACT
    @pytest.mark.parametrize("joint", [False, True])
    def test_round_trip_and_gradient(self, kind, gradient, joint):
        quantizer, x = product(kind, joint, gradient), torch.randn(2, 7, 32, requires_grad=True)
        x_q, codes, commitment_loss, codebook_loss = quantizer(x)
        assert x_q.shape == x.shape and codes.shape == (2, 3, 7) and codes.dtype == torch.int64
        assert commitment_loss.shape == codebook_loss.shape == ()
        encoded, encoded_x_q = quantizer.encode(x)
        assert torch.equal(encoded, codes) and torch.equal(encoded_x_q, x_q)
        assert torch.equal(quantizer.decode(codes), x_q)
        x_q.square().sum().backward()
        assert (x.grad.norm(dim=-1) > 0).all()

    def test_published_layout_by_hand(self):
        quantizer, x = ProductQuantizer(32, 3, 8, 64).eval(), torch.randn(1, 5, 32)
        x_q, codes, commitment_loss, _ = quantizer(x)
        losses = []
        for group, part in enumerate([slice(0, 10), slice(10, 20), slice(20, 32)]):
            z = x[0, :, part] @ quantizer.down[group].weight.t()
            table = quantizer.codebooks[group].embedding.weight
            code = (F.normalize(z, dim=1) @ F.normalize(table, dim=1).t()).argmax(1)
            assert torch.equal(code, codes[0, group])
            assert torch.allclose(table[code] @ quantizer.up[group].weight.t(), x_q[0, :, part], atol=1e-6)
            losses.append(F.mse_loss(z, table[code]))
        assert torch.allclose(commitment_loss, torch.stack(losses).mean())

    def test_joint_rows_belong_to_groups(self):
        quantizer, x = ProductQuantizer(32, 3, 4, 64, joint=True).eval(), torch.randn(2, 5, 32)
        down = quantizer.down.weight
        assert torch.allclose(down @ down.t(), torch.eye(12), atol=1e-5)
        assert torch.equal(quantizer.up.weight, down.t())
        codes = quantizer.encode(x)[0]
        for group in range(3):
            z = x @ down[4 * group : 4 * group + 4].t()
            assert torch.equal(quantizer.codebooks[group].encode(z.flatten(0, 1)).view(2, 5), codes[:, group])

    @pytest.mark.parametrize("joint", [False, True])
    def test_bypass_is_the_projections_alone(self, joint):
        quantizer, x = ProductQuantizer(12, 3, 4, 16, kind="ema", joint=joint).train(), torch.randn(2, 5, 12)
        x_q, codes, *losses = quantizer(x, bypass=True)
        assert codes.shape == (2, 3, 5) and (codes == -1).all() and all(loss == 0 for loss in losses)
        assert not any(book.initialized for book in quantizer.codebooks)
        if joint:  # 3 x 4 = 12 orthonormal rows lose nothing
            assert torch.allclose(x_q, x, atol=1e-5)
        else:
            expected = x[..., :4] @ (quantizer.up[0].weight @ quantizer.down[0].weight).t()
            assert torch.allclose(x_q[..., :4], expected, atol=1e-6)

    def test_errors_name_the_way_out(self):
        with pytest.raises(ConfigError, match="cosine, ema, simvq, affine, fsq"):
            ProductQuantizer(32, 3, 8, 64, kind="vq")
        with pytest.raises(ConfigError, match="dimension 2 into 3 groups"):
            ProductQuantizer(2, 3, 8, 64)


def residual(kind: str, gradient: str = "straight_through") -> ResidualQuantizer:
    quantizer = ResidualQuantizer(32, 4, 3, DIM, SIZE, kind=kind, gradient=gradient)
    quantizer.initialize(torch.randn(4, 300, 32))
    return quantizer


class TestResidual:
    @KINDS
    @CONTRACT
    def test_round_trip_and_prefix(self, kind, gradient):
        quantizer, x = residual(kind, gradient).eval(), torch.randn(2, 7, 32)
        for levels in (1, 3, 4):
            x_q, codes, *losses = quantizer(x, levels)
            assert codes.shape == (2, levels, 3, 7) and all(loss.shape == () for loss in losses)
            encoded, encoded_x_q = quantizer.encode(x, levels)
            assert torch.equal(encoded, codes)
            assert torch.equal(encoded_x_q, x_q) and torch.equal(quantizer.decode(codes), x_q)
            assert torch.equal(quantizer.encode(x)[0][:, :levels], codes)

    def test_each_level_halves_the_error(self):
        quantizer, x = ResidualQuantizer(32, 4, 3, 2, 16, kind="ema", joint=True).eval(), torch.randn(2, 50, 32)
        quantizer.initialize(torch.randn(4, 300, 32))
        target = quantizer(x, bypass=True)[0]
        errors = [F.mse_loss(quantizer(x, levels)[0], target).item() for levels in (1, 2, 3, 4)]
        assert errors[3] < 0.5 * errors[2] < 0.25 * errors[1] < 0.125 * errors[0]

    def test_every_levels_commitment_reaches_the_input(self):
        """With the residual taken against an undetached straight-through z_q, only level 0 would have a gradient."""
        quantizer, x = residual("cosine"), torch.randn(1, 6, 32, requires_grad=True)
        _, codes, commitment_loss, _ = quantizer(x)
        (gradient,) = torch.autograd.grad(commitment_loss, x)
        expected = torch.zeros_like(x)
        for group, part in enumerate(x.detach().split(quantizer.part_dims, dim=-1)):
            down = quantizer.down[group].weight
            left = part @ down.t()
            total = torch.zeros_like(left)
            for level in range(4):
                left = left - quantizer.codebooks[level][group].decode(codes[:, level, group])
                total = total + 2 * left / left.numel() / 3
            start = sum(quantizer.part_dims[:group])
            expected[..., start : start + part.shape[-1]] = total @ down
        assert torch.allclose(gradient, expected, atol=1e-6)

    def test_straight_through_gradient_counts_once(self):
        quantizer, x = residual("cosine"), torch.randn(1, 6, 32, requires_grad=True)
        weight = torch.randn(1, 6, 32)
        (gradient,) = torch.autograd.grad((quantizer(x)[0] * weight).sum(), x)
        (linear,) = torch.autograd.grad((quantizer(x, bypass=True)[0] * weight).sum(), x)
        assert torch.allclose(gradient, linear, atol=1e-5)

    def test_training_runs_all_levels_but_counts_the_first(self):
        quantizer, x = residual("cosine").train(), torch.randn(2, 7, 32)
        x_q, codes, *losses = quantizer(x, levels=2)
        (x_q.sum() + sum(losses)).backward()
        assert codes.shape == (2, 4, 3, 7)
        assert all(parameter.grad is not None for parameter in quantizer.parameters())
        reference_x_q, _, *reference_losses = quantizer.eval()(x, levels=2)
        assert torch.allclose(x_q, reference_x_q, atol=1e-6)
        assert all(torch.allclose(*pair) for pair in zip(losses, reference_losses, strict=True))

    def test_levels_out_of_range(self):
        with pytest.raises(ConfigError, match="levels must be 1 .. 4, got 5"):
            residual("cosine")(torch.randn(1, 2, 32), levels=5)


class TestEntropy:
    @pytest.mark.parametrize("shape", [(2, 3, 500), (2, 6, 3, 40)])
    def test_against_numpy(self, shape):
        codes = (torch.rand(shape) ** 2 * 64).long()
        entropy = code_entropy(codes, 64)
        assert entropy.shape == shape[1:-1]
        for book in np.ndindex(*shape[1:-1]):
            shares = np.bincount(codes.numpy()[(slice(None), *book)].ravel(), minlength=64) / (shape[0] * shape[-1])
            shares = shares[shares > 0]
            assert entropy[book].item() == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-5)

    def test_limits(self):
        assert code_entropy(torch.arange(1024).view(1, 1, -1), 1024).item() == 10
        assert code_entropy(torch.zeros(1, 1, 9, dtype=torch.int64), 1024).item() == 0
        assert code_entropy(torch.full((1, 2, 9), -1), 1024).tolist() == [0, 0]


RANK_SCRIPT = """
import sys
import torch
import torch.distributed as dist
from codec.codebooks import EmaQuantizer

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
torch.manual_seed(100 + rank)
fixed = EmaQuantizer(4, 32, restart_below=0.0).train()
fixed.load_state_dict(torch.load(out + "/start.pt", weights_only=True))
for batch in torch.load(out + f"/data{rank}.pt", weights_only=True):
    fixed(batch)
free = EmaQuantizer(4, 32).train()
for step in range(4):
    free.usage[step] = 0.0
    free(torch.randn(40 + 10 * rank, 4) + rank)
torch.save({"fixed": fixed.state_dict(), "free": free.state_dict()}, out + f"/result{rank}.pt")
dist.destroy_process_group()
"""


class TestDistributed:
    def test_two_ranks_agree_and_equal_one_process(self, tmp_path: Path, root: Path):
        """The ranks' batches differ in size; the k-means start and restarts are drawn, so they are compared too."""
        start = EmaQuantizer(4, 32, restart_below=0.0).train()
        start.initialize(torch.randn(200, 4))
        torch.save(start.state_dict(), tmp_path / "start.pt")
        data = [[torch.randn(size, 4) for _ in range(3)] for size in (50, 30)]
        for rank in range(2):
            torch.save(data[rank], tmp_path / f"data{rank}.pt")
        script = tmp_path / "rank.py"
        script.write_text(RANK_SCRIPT)
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        store = (tmp_path / "store").as_uri()
        ranks = [
            subprocess.Popen([sys.executable, script, str(rank), store, tmp_path], env=environment) for rank in range(2)
        ]
        try:
            assert [process.wait(timeout=120) for process in ranks] == [0, 0]
        finally:
            for process in ranks:
                process.kill()
        results = [torch.load(tmp_path / f"result{rank}.pt", weights_only=True) for rank in range(2)]
        for part in ("fixed", "free"):
            for name, value in results[0][part].items():
                assert torch.equal(value, results[1][part][name]), f"{part} {name} differs between ranks"
        for batches in zip(*data, strict=True):
            start(torch.cat(batches))
        for name, value in start.state_dict().items():
            assert torch.allclose(value.float(), results[0]["fixed"][name].float(), atol=1e-6), name
