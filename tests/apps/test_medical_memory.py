"""A volume of 512 x 512 x 600 is segmented within 16 GiB of main memory and 24 GiB of a GPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, resource, sys, time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mamba_apps.medical.segmentation import Segmenter
from mamba_apps.medical.segmentation.predictor import Predictor
from mamba_apps.medical.zoo import build_network
from mamba_datasets.volumes import Plan, read_label
from mamba_datasets.volumes.plan import Normalisation
from mamba_datasets.volumes.topology import topology

device, name, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
spacing = tuple(map(float, sys.argv[4].split(",")))
if device == "cpu":  # a driver reserves far more addresses than it uses
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30,) * 2)
labels = {"background": 0, **{f"organ {number}": number for number in range(1, classes)}}
plan = Plan(
    dataset="ct", configuration="3d_fullres", network=topology((96, 160, 160), np.ones(3)).network(), batch_size=2,
    spacing=spacing, axes=(0, 1, 2), orientation="RAS", normalisation=(Normalisation("ct", std=100.0, low=-900,
    high=900),), labels=labels, channel_names={0: "CT"},
)
if name == "pointwise":
    network = torch.nn.Conv3d(1, classes, 1)
else:
    network = build_network(name, plan.network, 1, classes)
slope = np.linspace(-1000, 1000, 512, dtype=np.int16)
image = np.lib.stride_tricks.as_strided(slope, (512, 512, 600), (2, 0, 0))
nib.Nifti1Image(image, np.diag([0.8, 0.8, 1.0, 1.0])).to_filename("ct.nii")
predictor = Predictor([network.to(device).eval()], plan, device=device, mirror=False)
begin = time.time()
Segmenter(predictor, name).write("ct.nii", "mask.nii.gz")
seconds = time.time() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
gpu = torch.cuda.max_memory_reserved() / 2**30 if device != "cpu" else 0.0
assert read_label("mask.nii.gz").shape == (600, 512, 512)
print(json.dumps({"seconds": seconds, "ram_gib": peak, "gpu_gib": gpu}))
"""


def measure(folder: Path, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(words, found)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("classes", "spacing"), [("3", "1.0,0.8,0.8"), ("14", "1.5,1.2,1.2")], ids=["kept", "resampled"]
)
def test_main_memory_is_bounded(classes: str, spacing: str, tmp_path: Path) -> None:
    assert measure(tmp_path, "cpu", "pointwise", classes, spacing)["ram_gib"] < 16


@pytest.mark.gpu
def test_a_gpus_memory_is_bounded(tmp_path: Path) -> None:
    found = measure(tmp_path, "cuda", "umamba_enc", "14", "1.5,1.2,1.2")
    assert found["ram_gib"] < 16
    assert found["gpu_gib"] < 24
