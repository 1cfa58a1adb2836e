"""Muon: kernel updates have the singular vectors of the gradient and singular values of about 1; the rest is AdamW."""

import pytest
import torch
from torch import nn

from volseg.training.optimisers import UPDATE_RMS, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 27), (8, 432), (64, 8), (32, 32), (1, 27)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))[0]
    right = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))[0]
    values = torch.logspace(0, -2, min(shape))
    found = left.T @ orthogonalise(scale * left * values @ right.T) @ right
    assert found.diagonal().min() > 0.65
    assert found.diagonal().max() < 1.25
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(4, 8)), torch.zeros(4, 8))


@pytest.mark.parametrize("layer", [nn.Conv3d(4, 6, 3), nn.Conv3d(4, 6, (3, 1, 1)), nn.ConvTranspose3d(6, 4, 2, 2)])
def test_the_first_step_of_a_kernel_is_the_orthogonal_gradient_whatever_its_size(layer: nn.Module) -> None:
    kernel = layer.weight
    assert isinstance(kernel, nn.Parameter)
    gradient = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1))
    before, updates = kernel.detach().clone(), []
    for scale in (1.0, 1000.0):
        kernel.data.copy_(before)
        kernel.grad = scale * gradient
        Muon(layer, learning_rate=0.1, weight_decay=0.5).step()
        updates.append((kernel.detach() - (1 - 0.1 * 0.5) * before) / -0.1)
    matrix = gradient.movedim(1, -1).flatten(1)
    expected = UPDATE_RMS * max(matrix.shape) ** 0.5 * orthogonalise(matrix)
    torch.testing.assert_close(updates[0].movedim(1, -1).flatten(1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(updates[0], updates[1], atol=1e-4, rtol=1e-3)
    assert 0.65 < updates[0].square().mean().sqrt() / UPDATE_RMS < 1.25


def test_momentum_adds_up_where_gradients_agree_and_cancels_where_they_alternate() -> None:
    layer = nn.Conv3d(1, 1, 3, bias=False)
    steady, alternating = torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3)
    steady[..., 0], alternating[..., 2] = 1.0, 1.0
    optimizer = Muon(layer, learning_rate=0.01, weight_decay=0.0)
    before = layer.weight.detach().clone()
    for step in range(40):
        layer.weight.grad = steady + alternating * (-1) ** step
        optimizer.step()
    moved = (layer.weight.detach() - before).abs().sum(dim=(0, 1, 2, 3))
    assert moved[0] > 10 * moved[2]
    assert moved[1] == 0


def test_three_steps_of_a_kernel_in_numbers() -> None:
    """Computed with numpy in float64 from the method's formulas; another momentum or iteration has other numbers."""
    layer = nn.Conv3d(1, 2, (1, 3, 1), bias=False)
    layer.weight.data.copy_(torch.tensor([[0.5, -1.0, 0.25], [1.5, 0.0, -0.75]]).view(2, 1, 1, 3, 1))
    optimizer = Muon(layer, learning_rate=0.1, weight_decay=0.5)
    for gradient, weights in (
        (
            [[1.0, -2.0, 0.5], [0.25, 1.0, -1.5]],
            [[0.45641, -0.92828, 0.24496], [1.40869, -0.00338, -0.68165]],
        ),
        (
            [[-0.5, 1.0, 1.5], [2.0, -0.25, 0.5]],
            [[0.43455, -0.88309, 0.20351], [1.30132, -0.00692, -0.64391]],
        ),
        (
            [[0.75, 0.5, -1.0], [-1.0, 1.5, 0.25]],
            [[0.37668, -0.83843, 0.19623], [1.23769, -0.03132, -0.60945]],
        ),
    ):
        layer.weight.grad = torch.tensor(gradient).view(2, 1, 1, 3, 1)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach().view(2, 3), torch.tensor(weights), atol=2e-5, rtol=0)
    assert layer.weight.grad is None


def test_all_other_parameters_take_the_steps_of_adamw() -> None:
    def trained(adamw: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.InstanceNorm3d(3, affine=True), nn.Flatten(), nn.Linear(24, 2))
        # Norms and biases have no weight decay.
        groups = [
            {"params": [one for one in network.parameters() if (one.ndim < 2) is plain], "weight_decay": decay}
            for plain, decay in ((True, 0.0), (False, 0.1))
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.02) if adamw else Muon(network, 0.02, 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            network(torch.randn(3, 2, 2, 2, 2)).square().sum().backward()
            optimizer.step()
        return list(network.state_dict().values())

    for ours, reference in zip(trained(adamw=False), trained(adamw=True), strict=True):
        assert torch.equal(ours, reference)


def test_steps_do_not_depend_on_the_memory_format_of_a_kernel() -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        torch.manual_seed(0)
        layer = nn.Conv3d(4, 8, 3, bias=False).to(memory_format=layout)
        optimizer = Muon(layer, learning_rate=0.01, weight_decay=0.0)
        for _ in range(3):
            layer.weight.grad = torch.randn(8, 4, 3, 3, 3).to(memory_format=layout)
            optimizer.step()
        results.append(layer.weight.detach().contiguous())
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_kernels_of_one_shape_together_take_the_steps_of_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(together: bool) -> list[torch.Tensor]:
        if together:
            monkeypatch.setattr(
                "volseg.training.optimisers._computed_together",
                lambda kernels: [
                    [one for one in kernels if one.shape == shape] for shape in {k.shape for k in kernels}
                ],
            )
        torch.manual_seed(0)
        shapes = [(4, 8), (8, 4), (4, 8), (4, 8), (8, 4)]
        network = nn.Sequential(*(nn.Conv3d(one, other, 3) for one, other in shapes))
        optimizer = Muon(network, 0.02, 0.1)
        for _ in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        return list(network.state_dict().values())

    for single, joint in zip(trained(together=False), trained(together=True), strict=True):
        torch.testing.assert_close(joint, single, atol=1e-6, rtol=1e-5)


def test_a_batch_of_matrices_becomes_orthogonal_one_by_one() -> None:
    matrices = (
        torch.randn(3, 16, 27, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1, 1e4])[:, None, None]
    )
    for batch in (matrices, matrices.mT, torch.zeros(2, 4, 8)):
        single = torch.stack([orthogonalise(one) for one in batch])
        torch.testing.assert_close(orthogonalise(batch), single, atol=1e-5, rtol=1e-5)
