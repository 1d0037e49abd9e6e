"""Averages made after training beside ema-pytorch's PostHocEMA: the same problem, both against the average itself."""

import numpy as np
import pytest
import torch
from loading import FOLDER, install
from tests.reference import retroactive as naive

from lowland import EMA
from lowland.ema import Power
from lowland.retroactive import PowerLaw, fit, synthesise
from lowland.retroactive.sweep import Recorded

STEPS, EVERY, WIDTHS = 300, 25, (0.05, 0.1)


@pytest.fixture(scope="module")
def post_hoc():
    trouble = install("ema-pytorch", offline=True)
    if trouble:
        pytest.skip(f"ema-pytorch {trouble}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER / "ema-pytorch"))
        import ema_pytorch.post_hoc_ema as module

        yield module


@pytest.mark.slow
def test_its_coefficients_are_the_papers_and_near_ours(post_hoc):
    basis = [(PowerLaw.of_width(w, 1).gamma, float(t)) for t in range(EVERY, STEPS + 1, EVERY) for w in WIDTHS]
    target = (PowerLaw.of_width(0.07, 1).gamma, float(STEPS))
    gammas, times = (torch.tensor(column, dtype=torch.float64) for column in zip(*basis, strict=True))
    theirs = (
        post_hoc.solve_weights(times, gammas, torch.tensor([target[1]]), torch.tensor([target[0]])).flatten().numpy()
    )
    np.testing.assert_allclose(theirs, naive.karras_coefficients(basis, target), atol=1e-6)
    ours = fit([PowerLaw(g, int(t)) for g, t in basis], PowerLaw(target[0], STEPS))
    np.testing.assert_allclose(ours.coefficients, theirs, atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.06, 0.07, 0.085])
def test_ours_is_nearer_to_the_average_that_it_stands_for(post_hoc, tmp_path, width):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False)
    theirs = post_hoc.PostHocEMA(
        model,
        sigma_rels=WIDTHS,
        update_every=1,
        checkpoint_every_num_steps=EVERY,
        checkpoint_folder=str(tmp_path),
        checkpoint_dtype=torch.float32,
    )
    ours = {width: EMA(Power.of_width(width)) for width in WIDTHS}
    # What each would have kept in training, by its own rule: theirs counts an update more than ours.
    kept, target = EMA(Power.of_width(width)), PowerLaw.of_width(width, STEPS)
    twin = post_hoc.KarrasEMA(model, sigma_rel=width, update_every=1)
    basis = []
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.mul_(0.99).add_(0.05 * torch.randn(8, 8))
        theirs.update()
        twin.update()
        kept.update(model)
        for own, averager in ours.items():
            averager.update(model)
            if step % EVERY == 0:
                basis.append(Recorded(PowerLaw.of_width(own, step), averager.mean()))
    their_error = (theirs.synthesize_ema_model(sigma_rel=width).ema_model.weight - twin.ema_model.weight).norm().item()
    our_error = (synthesise(basis, target)["weight"] - kept.mean()["weight"]).norm().item()
    print(f"width {width}: ours {our_error:.2e}, theirs {their_error:.2e}")
    assert our_error < 0.01 * (model.weight - kept.mean()["weight"]).norm().item()
    assert our_error < their_error
