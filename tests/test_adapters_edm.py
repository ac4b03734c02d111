"""Networks in the call of EDM's code: an exact denoiser, and what the adapter reads."""

import pytest
import torch
from torch import nn

import pathline as pl
from pathline.adapters import edm
from pathline.core import noise
from pathline.core.errors import UsageError
from pathline.fields.problems import m4
from pathline.solvers import grids

LAW = m4(pl.EDM())
MEANS = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)


class Precond(nn.Module):
    """Standard normal data around a mean that the class says; no class is mean zero."""

    label_dim, sigma_min, sigma_max = 3, 0.0, float("inf")
    img_channels, img_resolution = 1, 2

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert sigma.shape == (len(x),)
        means = class_labels.to(MEANS) @ MEANS if class_labels is not None else MEANS[:1]
        means, level = (v.reshape(-1, 1, 1, 1).to(x.dtype) for v in (means, sigma))
        return means + (x - means) / (1 + level**2)


def test_samples_are_those_of_the_exact_field_bit_for_bit():
    model = edm.denoiser(lambda x, sigma: LAW(x, sigma / 80.0).x0, shape=(3,))
    for solver, grid in (("heun", grids.karras(9)), ("dpmpp_3m", grids.log_snr(8))):
        ours = pl.sample(model, 4, solver=solver, grid=grid, dtype=torch.float64)
        assert torch.equal(
            ours.x, pl.sample(LAW, 4, solver=solver, grid=grid, dtype=ours.x.dtype).x
        )


def test_levels_shape_and_classes_are_the_networks_own():
    model = edm.denoiser(Precond())
    assert model.path == pl.EDM(0.002, 80.0) and model.shape == (1, 2, 2)
    assert model.name == "Precond" and model.null["class_labels"].tolist() == [[0.0] * 3]
    assert edm.denoiser(Precond(), sigma_min=0.01, sigma_max=50.0).path == pl.EDM(0.01, 50.0)


def test_a_class_is_sampled_and_guided():
    """Mean m + (w − 1)(m − 0) follows from the guided field of two Gaussians of one width."""
    model = edm.denoiser(Precond())
    grid = grids.log_snr(40)
    seeds = range(2)
    z = noise.normal(seeds, (1, 2, 2), dtype=torch.float64)
    for weight in (1.0, 3.0):
        x = pl.sample(model, seeds=seeds, solver="dpmpp_3m", grid=grid, guide=pl.CFG(weight),
                      class_labels=[1, 2], dtype=torch.float64).x  # fmt: skip
        mean = weight * torch.tensor([2.0, -3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        # the flow of N(m, 1): x − m shrinks as √(1 + σ²)
        start, end = 80.0, 0.002
        expected = mean + (80.0 * z - mean) * ((1 + end**2) / (1 + start**2)) ** 0.5
        assert (x - expected).abs().max() < 1e-3


def test_classes_are_numbers_or_rows():
    model = edm.denoiser(Precond())
    rows = torch.eye(3)[[2, 0]]
    x = torch.ones(2, 1, 2, 2)
    by_number, by_row = (model.condition({"class_labels": each}, 2) for each in ([2, 0], rows))
    assert torch.equal(by_number["class_labels"], by_row["class_labels"])
    assert model(x, 0.5, **by_number).x0[0, 0, 0, 0] < 0 < model(x, 0.5, **by_number).x0[1, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: edm.denoiser(3), "must be callable, and is a int"),
        (lambda: edm.denoiser(lambda x: x), r"not called as network\(x, sigma\)"),
        (lambda: pl.sample(edm.denoiser(Precond()), 1, class_labels=3), r"0 to 2, not \[3\]"),
        (lambda: pl.sample(edm.denoiser(Precond()), 1, class_labels=torch.ones(1, 2)), "rows of 3"),
    ],
)  # fmt: skip
def test_bad_input_is_told(call, words):
    with pytest.raises(UsageError, match=words):
        call()
