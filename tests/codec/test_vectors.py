"""The exact search, k-means and the rotation trick against slow twins."""

import pytest
import torch
import torch.nn.functional as F

from codec.vectors import kmeans, nearest, rotate, straight_through


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixture(num_vectors: int, dim: int = 5, num_modes: int = 24) -> torch.Tensor:
    """Vectors (M, d) around fixed random centres of unequal weight, far from the origin on average."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(num_modes, dim, generator=generator) + 0.5
    modes = (torch.rand(num_vectors) ** 2 * num_modes).long()
    return centres[modes] + 0.2 * torch.randn(num_vectors, dim)


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
