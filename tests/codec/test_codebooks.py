"""What each learned codebook does by its paper, formula by formula, and its sums over ranks in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codec.codebooks import AffineQuantizer, CosineQuantizer, EmaQuantizer, SimVQQuantizer
from codec.quantizers import code_entropy
from engine.errors import ConfigError

DIM = 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixture(num_vectors: int, dim: int = DIM, num_modes: int = 24) -> torch.Tensor:
    """Vectors (M, d) around fixed random centres of unequal weight, far from the origin on average."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(num_modes, dim, generator=generator) + 0.5
    modes = (torch.rand(num_vectors) ** 2 * num_modes).long()
    return centres[modes] + 0.2 * torch.randn(num_vectors, dim)


def distortion(quantizer, z: torch.Tensor) -> float:
    with torch.no_grad():
        return F.mse_loss(quantizer.decode(quantizer.encode(z)), z).item()


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


RANK_SCRIPT = """
import os, pathlib, sys, time
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
# Taking gloo's threads down, or leaving while the other rank still sends, can abort: leave once both have written all.
pathlib.Path(out, f"done{rank}").touch()
while not pathlib.Path(out, f"done{1 - rank}").exists():
    time.sleep(0.02)
os._exit(0)
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
