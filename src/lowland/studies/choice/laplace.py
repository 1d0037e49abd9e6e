"""A Laplace approximation of a language model's head, by laplace-torch, where that is installed.

    W ~ N(W*, (H + p I)^-1),   H the Kronecker-factored Gauss-Newton matrix on the training questions

W* is the head of the base model and p maximises the marginal likelihood (Daxberger et al. 2021, arXiv 2106.14806; on
adapters Yang, Robeyns, Wang, Aitchison 2024, arXiv 2308.13111, who take the adapters in as well). No extra brings the
package: it wants a torchvision, which breaks Transformers beside another torch. Install it without what it wants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland import Snapshots

from ..adapters.member import Member
from ..runs.randomness import derived_seed, own_randomness


def head_draws(member: Member) -> Snapshots:
    """Return draws of the base model whose head is drawn from a Laplace approximation, as many as SWAG has.

    Raises:
        ImportError: laplace-torch is missing.
    """
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    shared, weights = member.shared, member.weights("base")
    shared.adapted.write(weights)
    features = _features(member)
    name = next(key for key in weights if ".modules_to_save." in key or key.endswith("head.weight"))
    head = nn.Linear(features.shape[1], weights[name].shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(weights[name])
    loader = DataLoader(TensorDataset(features, torch.tensor(list(shared.labels["train"]))), batch_size=64)
    settings = shared.study.evaluation
    with own_randomness():
        torch.manual_seed(derived_seed(member.seed, "laplace"))
        found = Laplace(head, "classification", subset_of_weights="all", hessian_structure="kron")
        found.fit(loader)
        found.optimize_prior_precision(method="marglik")
        drawn: Tensor = found.sample(settings.samples).detach()
    members = Snapshots(settings.samples)
    for row in drawn:
        members.update({**weights, name: row.reshape(weights[name].shape).to(weights[name].dtype)})
    return members


@torch.no_grad()
def _features(member: Member) -> Tensor:
    """What the head is given for each training question, (N, H)."""
    shared = member.shared
    merged, caught = shared.adapted.merged, []
    handle = merged.get_submodule("head").register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    rows: list[int] = []
    try:
        for some, batch in shared.train.batches(shared.study.evaluation.batch_size):
            merged(**batch)
            rows += list(some)
    finally:
        handle.remove()
    found = torch.cat(caught)
    return found[torch.tensor(rows).argsort()].clone()
