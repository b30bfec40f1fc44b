"""Every estimator: against a plain recount, in steps and in sequences, over batch changes."""

import copy
import functools
import math
import pickle
from collections.abc import Callable

import pytest
import snntorch as snn
import torch

from snn_homeostasis import ArgumentError, CumulativeRate, ExponentialRate, NoSpikesError, WindowedRate
from snn_homeostasis.observe import RateEstimator, SpikeHook


class WideningRate(CumulativeRate):
    """Counts in double precision after four steps in place of millions."""

    float32_steps = 4


ESTIMATORS = {
    "widening": WideningRate,
    "cumulative": CumulativeRate,
    "exponential": functools.partial(ExponentialRate, tau=7.5),
    "windowed": functools.partial(WindowedRate, 6),
}


def weights(name: str, steps: int) -> list[float]:
    """The weight that the definition gives each of the last ``steps`` steps, oldest first."""
    ages = range(steps - 1, -1, -1)
    raw = {
        "widening": [1.0 for _ in ages],
        "cumulative": [1.0 for _ in ages],
        "exponential": [math.exp(-age / 7.5) for age in ages],
        "windowed": [float(age < 6) for age in ages],
    }[name]
    return [weight / sum(raw) for weight in raw]


def recount(name: str, spikes: torch.Tensor) -> torch.Tensor:
    return sum(w * s.double() for w, s in zip(weights(name, len(spikes)), spikes, strict=True))


def some_spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(shape) < 0.3).float()


def recorder(rate: RateEstimator) -> Callable[[torch.Tensor], None]:
    """Records single steps in an estimator, as the hook of a model does."""
    neuron = snn.Leaky(beta=0.9)
    hook = SpikeHook(neuron, lambda shape: None)
    hook.listen(rate)
    return functools.partial(hook, neuron, (), {})


estimators = pytest.mark.parametrize("name", ESTIMATORS)


@estimators
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, 40])
def test_rate_is_its_definition(name, steps):
    spikes = some_spikes(steps, 3, 4)
    rate = ESTIMATORS[name]()
    for step in spikes.split(1):
        rate.update(step)
    torch.testing.assert_close(rate.rate.double(), recount(name, spikes), rtol=1e-6, atol=1e-7)


@estimators
@pytest.mark.parametrize("chunks", [[30], [1, 29], [5, 5, 20], [7, 0, 23], [1] * 30])
def test_one_step_and_whole_sequence_agree(name, chunks):
    spikes = some_spikes(30, 3, 4)
    rate = ESTIMATORS[name]()
    for chunk in spikes.split(chunks):
        if len(chunk):
            rate.update(chunk)
    assert rate.steps == 30
    torch.testing.assert_close(rate.rate.double(), recount(name, spikes), rtol=1e-6, atol=1e-7)


@estimators
@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float64])
def test_spikes_of_any_dtype_count_alike(name, dtype):
    spikes = some_spikes(2500, 2, 3)  # float16 counts up to 2048
    rate = ESTIMATORS[name]()
    rate.update(spikes[:1].to(dtype))
    rate.update(spikes[1:].to(dtype))
    assert rate.rate.dtype == torch.float32
    torch.testing.assert_close(rate.rate.double(), recount(name, spikes), rtol=1e-5, atol=1e-7)


@estimators
def test_estimate_survives_a_change_of_batch_size(name):
    chunks = [some_spikes(3, batch, 5) for batch in (4, 2, 1, 4)]
    rate = ESTIMATORS[name]()
    expected = torch.zeros(0, 1, 5)
    for chunk in chunks:
        rate.update(chunk)
        past = expected if len(expected) == 0 else expected.mean(1, keepdim=True)
        past = past if expected.shape[1] != chunk.shape[1] else expected
        expected = torch.cat([past.expand(-1, chunk.shape[1], -1), chunk])
    assert rate.steps == 12
    torch.testing.assert_close(rate.rate.double(), recount(name, expected), rtol=1e-6, atol=1e-7)


@estimators
def test_recording_single_steps_is_updating_with_them(name):
    recorded, updated = ESTIMATORS[name](), ESTIMATORS[name]()
    record = recorder(recorded)
    for batch in (4, 2, 1, 4):
        for step in some_spikes(7, batch, 5):
            record(step)
            updated.update(step.unsqueeze(0))
    assert recorded.steps == updated.steps == 28
    torch.testing.assert_close(recorded.rate, updated.rate)


def _load(rate):
    rate.load_state_dict(copy.deepcopy(rate.state_dict()))


def _assign(rate):
    for name in rate.state:
        setattr(rate, name, None if getattr(rate, name) is None else getattr(rate, name).clone())


def _update_another_batch(rate):
    rate.update(torch.zeros(1, 5, 3))


@estimators
@pytest.mark.parametrize(
    "change", [lambda rate: rate.reset(), _load, _assign, RateEstimator.double, _update_another_batch]
)
def test_recording_goes_on_where_the_state_was_changed(name, change):
    recorded, updated = ESTIMATORS[name](), ESTIMATORS[name]()
    record = recorder(recorded)
    for step in some_spikes(3, 2, 3):
        record(step)
        updated.update(step.unsqueeze(0))
    change(recorded)
    change(updated)
    for step in some_spikes(3, 2, 3):
        record(step)
        updated.update(step.unsqueeze(0))
    assert recorded.steps == updated.steps
    torch.testing.assert_close(recorded.rate, updated.rate)


@estimators
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda rate: pickle.loads(pickle.dumps(rate))])
def test_a_copy_does_not_record_into_its_original(name, copier):
    original = ESTIMATORS[name]()
    record = recorder(original)
    record(torch.ones(2, 3))
    copied = copier(original)
    recorder(copied)(torch.zeros(2, 3))
    assert (original.steps, copied.steps) == (1, 2)
    torch.testing.assert_close(original.rate, torch.ones(2, 3))
    assert (copied.rate < 1).all()
    record(torch.ones(2, 3))
    torch.testing.assert_close(original.rate, torch.ones(2, 3))
    assert copied.steps == 2


def test_counts_are_exact_beyond_the_integers_of_float32():
    rate = WideningRate()
    for _ in range(30):
        rate.update_step(torch.ones(2, 3))
    assert rate.total.dtype == torch.float64
    torch.testing.assert_close(rate.rate, torch.ones(2, 3, dtype=torch.float32))


@estimators
def test_neurons_must_stay_the_same(name):
    rate = ESTIMATORS[name]()
    rate.update(some_spikes(2, 3, 4, 1, 1))
    before = rate.rate
    with pytest.raises(ArgumentError, match=r"Found \[4, 6, 6\] after \[4, 1, 1\]"):
        rate.update(some_spikes(2, 3, 4, 6, 6))
    assert torch.equal(rate.rate, before)


@estimators
def test_state_made_under_inference_mode_works_outside(name):
    rate = ESTIMATORS[name]()
    spikes = some_spikes(6, 3, 4)
    with torch.inference_mode():
        rate.update(spikes[:2])
        rate.update(spikes[2:, :2])
    rate.update(spikes[:3, :2])
    assert rate.steps == 9


@estimators
def test_no_rate_before_spikes_and_none_after_reset(name):
    rate = ESTIMATORS[name]()
    with pytest.raises(NoSpikesError, match="at least one step"):
        _ = rate.rate
    rate.update(some_spikes(9, 2, 3))
    rate.reset()
    with pytest.raises(NoSpikesError, match="at least one step"):
        _ = rate.rate
    rate.update(torch.ones(1, 2, 3))
    assert rate.rate.unique().tolist() == [1.0]


@estimators
@pytest.mark.parametrize("used_before", [False, True])
def test_state_loads_into_fresh_and_used_estimators(name, used_before):
    saved, loaded = ESTIMATORS[name](), ESTIMATORS[name]()
    for batch in (4, 3):
        saved.update(some_spikes(5, batch, 2))
    if used_before:
        loaded.update(some_spikes(2, 7, 2))
    loaded.load_state_dict(saved.state_dict(), strict=True)
    more = some_spikes(4, 3, 2)
    saved.update(more)
    loaded.update(more)
    assert torch.equal(saved.rate, loaded.rate)
    assert saved.steps == loaded.steps == 14


@estimators
def test_strict_loading_names_keys_that_do_not_belong(name):
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*steps.*Unexpected.*stranger|Unexpected.*stranger"):
        ESTIMATORS[name]().load_state_dict({"stranger": torch.zeros(1)})


@estimators
def test_conversion_never_lowers_the_precision(name):
    rate = ESTIMATORS[name]()
    rate.update(some_spikes(5, 2, 3))
    before = rate.rate
    assert torch.equal(rate.half().rate, before)
    assert torch.equal(rate.to(torch.bfloat16).rate, before)


@estimators
def test_no_graph_and_no_spike_tensors_are_kept(name):
    spikes = some_spikes(5, 2, 3)
    rate = ESTIMATORS[name]()
    rate.update(spikes)
    assert not rate.rate.requires_grad
    expected = rate.rate.clone()
    spikes.fill_(9.0)
    assert torch.equal(rate.rate, expected)


def test_cumulative_is_exact_beyond_float32_counters():
    rate = CumulativeRate()
    chunk = torch.ones(1, 1, 2).expand(2**20, 1, 2) * torch.tensor([1.0, 0.0])
    for _ in range(24):  # 2.5e7 steps, past 2**24
        rate.update(chunk)
    rate.update(torch.zeros(2**20, 1, 2))
    assert rate.steps == 25 * 2**20
    torch.testing.assert_close(rate.rate, torch.tensor([[0.96, 0.0]], dtype=torch.float32), rtol=2e-7, atol=0)


@pytest.mark.parametrize("tau", [0, -1.0, math.nan, math.inf, "ten", None])
def test_a_bad_tau_is_refused(tau):
    with pytest.raises(ArgumentError, match=r"`tau` should be > 0 and finite, in steps. Found `tau = "):
        ExponentialRate(tau)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_a_bad_window_is_refused(steps):
    with pytest.raises(ArgumentError, match=r"`steps` should be an integer > 0. Found `steps = "):
        WindowedRate(steps)


def test_saved_window_of_another_length_is_refused():
    saved = WindowedRate(6)
    saved.update(some_spikes(9, 2, 3))
    with pytest.raises(RuntimeError, match="`steps` should be 6, the saved window"):
        WindowedRate(10).load_state_dict(saved.state_dict())


def test_an_estimator_with_a_rate_of_its_own_is_refused():
    with pytest.raises(ArgumentError, match=r"`Half` should define `update` and `weight`"):

        class Half(CumulativeRate):
            rate = 0.5


class Latest(RateEstimator):
    """A user's estimator, with the two definitions that it needs."""

    def update(self, spikes):
        self.total_for(spikes[0]).copy_(spikes[-1])
        self.count(len(spikes), spikes.device)

    @property
    def weight(self):
        return 1.0


def test_a_users_estimator_needs_two_definitions():
    rate = Latest()
    record = recorder(rate)
    for step in some_spikes(4, 2, 3):
        record(step)
    assert rate.steps == 4
    assert torch.equal(rate.rate, step)
