"""Muon: orthogonal steps for matrices, AdamW for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.training.muon import Muon, hidden_weights, orthogonal
from mamba_apps.vision.weights import create_model


@pytest.mark.parametrize("shape", [(3, 20, 50), (2, 50, 20), (1, 16, 16)])
def test_orthogonal_keeps_singular_vectors_and_evens_values(shape: tuple[int, int, int]) -> None:
    x_NRC = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(x_NRC)
    U, _, Vh = torch.linalg.svd(x_NRC, full_matrices=False)
    inner = U.mT @ found @ Vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-3, rtol=0)
    assert 0.5 < values.min() < values.max() < 1.25
    torch.testing.assert_close(orthogonal(x_NRC[:1] * 100)[0], found[0], atol=1e-4, rtol=0)  # whatever the size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_steps_as_a_cpu_does_but_for_rounding() -> None:
    values, steps = torch.randn(64, 96), []
    for device in ("cpu", "cuda"):
        matrix = nn.Parameter(values.to(device, copy=True))
        bias = nn.Parameter(torch.ones(7, device=device))
        groups = [{"params": [matrix], "orthogonal": True}, {"params": [bias], "orthogonal": False}]
        optimiser = Muon(groups, lr=0.1, fused=True)
        matrix.grad, bias.grad = values.square().to(device), torch.ones(7, device=device)
        optimiser.step()
        assert bool((bias < 1).all())
        steps.append(matrix.detach().cpu() - values)
    assert torch.linalg.norm(steps[1] - steps[0]) < 0.05 * torch.linalg.norm(steps[0])


def test_a_step_has_adamw_s_size_and_decays() -> None:
    matrix, kernel = nn.Parameter(torch.randn(40, 60)), nn.Parameter(torch.randn(8, 4, 3, 3))
    before = matrix.detach().clone(), kernel.detach().clone()
    optimiser = Muon([{"params": [matrix, kernel], "weight_decay": 0.5, "orthogonal": True}], lr=0.1)
    first = torch.randn(40, 60)
    matrix.grad, kernel.grad = first, torch.randn(8, 4, 3, 3)
    assert optimiser.step(lambda: torch.tensor(3.0)) == 3.0
    for parameter, old in zip((matrix, kernel), before, strict=True):
        step = (0.95 * old - parameter.detach()) / 0.1
        assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)
    torch.testing.assert_close(matrix.detach(), 0.95 * before[0] - 0.02 * 60**0.5 * orthogonal(first[None])[0])
    old, second = matrix.detach().clone(), torch.randn(40, 60)
    matrix.grad, kernel.grad = second, None
    optimiser.step()
    average = 0.95 * 0.05 * first + 0.05 * second
    ahead = 0.05 * second + 0.95 * average
    torch.testing.assert_close(matrix.detach(), 0.95 * old - 0.02 * 60**0.5 * orthogonal(ahead[None])[0])


def test_the_other_groups_are_adamw_s() -> None:
    values = torch.randn(6)
    mine, theirs = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    matrix = nn.Parameter(torch.randn(4, 4))
    groups = [
        {"params": [matrix], "orthogonal": True},
        {"params": [mine], "orthogonal": False, "weight_decay": 0.3, "lr": 0.2},
    ]
    muon = Muon(groups, lr=0.1, betas=(0.8, 0.9))
    adamw = torch.optim.AdamW([theirs], lr=0.2, betas=(0.8, 0.9), weight_decay=0.3)
    for _ in range(3):
        matrix.grad, mine.grad = torch.randn(4, 4), torch.randn(6)
        theirs.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(mine, theirs)
    assert len(muon.param_groups) == 2


def test_it_is_for_what_mixes_channels_inside_a_network() -> None:
    network = create_model("vmamba_nano_8", {"num_classes": 10})
    head = network.get_classifier()
    chosen = {id(weight) for weight in hidden_weights(network, head)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert {"patch_embed.0.weight", "layers.0.blocks.0.mlp.fc1.weight", "layers.0.downsample.1.weight"} <= names
    assert all(name.endswith("weight") for name in names)
    spared = ("head", "norm", "conv2d", "dt_projs", "A_logs")  # depthwise, stacked or no matrices
    assert not [name for name in names if any(part in name for part in spared)]


def test_vectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}], lr=0.1)
