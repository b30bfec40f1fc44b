"""Published kinds of models, in 30 steps of training: nothing breaks, and rates move to the target."""

import pytest
import torch
from models import MODEL_CASES, policies, signals, vision
from test_tracing import attached, called, reset, summed

FAMILIES = {each.__name__ for each in (policies, signals, vision)}
CASES = [case for case in MODEL_CASES if not case.problems and case.build.__module__ in FAMILIES]
TARGET, STEPS = 0.2, 30


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rates_reach_the_target_while_the_model_trains(case):
    model = case.build()
    names = list(model.state_dict())
    homeostasis, _ = attached(case, model, plasticity=0.1, target=TARGET)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    homeostasis.follow(optimizer)
    rates = []
    for _ in range(STEPS):
        homeostasis.clear()
        reset(model)
        optimizer.zero_grad()
        loss = sum(summed(called(model, case.example())) for _ in range(2))
        (1e-3 * loss).backward()
        optimizer.step()
        rates.append(torch.stack([rate.mean() for rate in homeostasis.rates().values()]))
    first, last = (rates[0] - TARGET).abs(), (torch.stack(rates[-10:]).mean(0) - TARGET).abs()
    assert (last < torch.maximum(0.5 * first, torch.tensor(0.05))).all(), (first, last)
    assert list(model.state_dict()) == names
    assert all(each.isfinite().all() for each in model.parameters())
