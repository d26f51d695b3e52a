"""Training in half precision at the papers' learning rates stays finite."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

import mamba_apps.vision  # noqa: F401  registers the models
from mamba_apps.training.optimiser import make_optimiser
from mamba_datasets.samples import load_digits
from mamba_kernels.graphs import ReplayedTraining

GPU = torch.cuda.is_available()
# of Vim-Ti and VMamba-T, for 1,024 images a step
RATE, WARMUP = 1e-3, 50


def train(name: str, dtype: torch.dtype, device: str, *, steps: int, batch: int) -> tuple[torch.Tensor, int]:
    """Return the losses of a training on enlarged digits, and how many steps its loss scaler has left out."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(device).train()
    _, size, _ = model.default_cfg["input_size"]
    optimiser, _ = make_optimiser(model, lr=RATE, weight_decay=0.1, layer_decay=1.0, betas=(0.9, 0.999))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / WARMUP, 1.0))
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    if device == "cuda":
        ReplayedTraining(model)  # the same kernels; most of a step would be Python's
    pixels, digits = (torch.as_tensor(array).to(device) for array in load_digits())
    x_NCHW = (pixels.float()[:, None] / pixels.max() - 0.5).expand(-1, 3, -1, -1)
    losses, left_out = [], 0
    for _ in range(steps):
        chosen = torch.randint(len(digits), (batch,), device=device)
        x_BCHW = F.interpolate(x_NCHW[chosen], (size, size), mode="bilinear")
        with torch.autocast(device, dtype):
            loss = F.cross_entropy(model(x_BCHW).float(), digits[chosen].long())
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimiser)
        scaler.update()
        left_out += scaler.get_scale() < scale
        rate.step()
        losses.append(loss.detach())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return torch.stack(losses), left_out


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vim_small_patch16_224", "vmamba_tiny_s1l8"])
def test_500_steps_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    losses, left_out = train(name, dtype, "cuda", steps=500, batch=64)
    assert losses.isfinite().all()
    assert losses[-50:].mean() < 0.5 * losses[:10].mean()
    # a scaler begins too high on purpose; one that never settles hides overflows
    assert left_out < 10


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "vmamba_nano_8"])
def test_steps_on_a_cpu(name: str) -> None:
    losses, _ = train(name, torch.bfloat16, "cpu", steps=60, batch=16)
    assert losses.isfinite().all()
    assert losses[-10:].mean() < losses[:10].mean()
