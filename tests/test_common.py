import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_ext.common.distributions import TruncatedNormal
from sb3_ext.common.engine.matmul import FP32_MAX_ERROR, matmul_precision, onednn_is_fp32
from sb3_ext.common.ensemble import EnsembleCritic, EnsembleMLP, draw_members
from sb3_ext.common.losses import behaviour_cloning_loss, ensemble_mse, mean_q_actor_loss, td_target
from sb3_ext.common.schedules import as_schedule
from sb3_ext.common.standardize import StandardizingExtractor

# --- Losses, by hand -------------------------------------------------------------------------------------------------


def column(*values):
    return th.tensor(values).reshape(-1, 1)


def test_td_target():
    target = td_target(column(1.0, 0.0, 2.0), column(0.0, 0.0, 1.0), 0.5, column(4.0, 6.0, 8.0))
    assert target.flatten().tolist() == [3.0, 3.0, 2.0]
    target = td_target(column(1.0, 0.0), column(0.0, 0.0), column(0.5, 0.25), column(4.0, 8.0))
    assert target.flatten().tolist() == [3.0, 2.0]


def test_ensemble_mse_sums_critics_and_averages_rows():
    q_values = th.tensor([[[1.0], [2.0]], [[0.0], [6.0]]])
    # critic 0: (0 + 4) / 2, critic 1: (1 + 4) / 2; half of 2 + 2.5
    assert ensemble_mse(q_values, column(1.0, 4.0)).item() == 2.25


def test_mean_q_actor_loss():
    q_values = th.tensor([[[1.0], [2.0]], [[3.0], [6.0]]])
    # rows: 0.5 * 2 - 2 = -1 and 0.5 * -4 - 4 = -6
    assert mean_q_actor_loss(q_values, column(2.0, -4.0), 0.5).item() == -3.5


def test_behaviour_cloning_loss():
    assert behaviour_cloning_loss(th.tensor([-1.0, -3.0])).item() == 2.0


# --- Distribution ----------------------------------------------------------------------------------------------------


def test_truncated_normal_log_prob_is_that_of_the_normal():
    distribution = TruncatedNormal(th.tensor([[0.2, -0.5]]), scale=0.1)
    expected = th.distributions.Normal(distribution.loc, 0.1).log_prob(th.tensor([[0.3, -1.0]])).sum(-1)
    th.testing.assert_close(distribution.log_prob(th.tensor([[0.3, -1.0]])), expected)
    assert expected.item() == pytest.approx(-0.5 - 12.5 - 2 * math.log(0.1) - math.log(2 * math.pi), rel=1e-5)


def test_truncated_normal_samples_stay_inside_and_carry_the_gradient():
    loc = th.tensor([[0.95, -0.95, 0.0]], requires_grad=True)
    distribution = TruncatedNormal(loc, scale=0.1)
    sample = distribution.rsample(noise=th.tensor([[3.0, -3.0, 2.0]]))
    assert sample.tolist() == [[pytest.approx(1 - 1e-6), pytest.approx(-1 + 1e-6), pytest.approx(0.2)]]
    assert (sample.abs() < 1).all()
    sample.sum().backward()
    assert loc.grad.tolist() == [[1.0, 1.0, 1.0]]


def test_truncated_normal_clips_noise():
    distribution = TruncatedNormal(th.zeros(1, 2), scale=0.1)
    sample = distribution.rsample(noise=th.tensor([[5.0, 1.0]]), noise_clip=0.3)
    assert sample.tolist() == [[pytest.approx(0.3), pytest.approx(0.1)]]


# --- Ensemble --------------------------------------------------------------------------------------------------------


def looped(mlp: EnsembleMLP, x: th.Tensor) -> th.Tensor:
    """The same perceptrons, one after the other, by PyTorch's own layers."""
    outputs = []
    for k in range(mlp.head.weight.shape[0]):
        h = x
        for i, linear in enumerate(mlp.hidden):
            h = th.nn.functional.linear(h, linear.weight[k].T, linear.bias[k, 0])
            if len(mlp.norms) > 0:
                norm = mlp.norms[i]
                h = th.nn.functional.layer_norm(h, h.shape[-1:], norm.weight[k, 0], norm.bias[k, 0])
            h = th.relu(h)
        outputs.append(th.nn.functional.linear(h, mlp.head.weight[k].T, mlp.head.bias[k, 0]))
    return th.stack(outputs)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_ensemble_equals_a_loop_over_its_members(layer_norm):
    th.manual_seed(0)
    mlp = EnsembleMLP(4, 7, [16, 8], layer_norm=layer_norm)
    for parameter in mlp.parameters():  # layer norms start as the identity; move them
        parameter.data += 0.1 * th.randn_like(parameter)
    x = th.randn(5, 7)
    th.testing.assert_close(mlp(x), looped(mlp, x))
    members = th.tensor([2, 0])
    th.testing.assert_close(mlp(x, members), looped(mlp, x)[members])


def test_ensemble_members_start_different_and_within_the_bounds_of_nn_linear():
    mlp = EnsembleMLP(3, 25, [16])
    weight = mlp.hidden[0].weight
    assert (weight[0] != weight[1]).all()
    assert weight.abs().max() <= 1 / 5 and weight.abs().max() > 0.19


def test_ensemble_critic_shapes():
    observation_space, action_space = spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,))
    critic = EnsembleCritic(observation_space, action_space, [8], FlattenExtractor(observation_space), 5, n_critics=6)
    obs, actions = th.zeros(3, 5), th.zeros(3, 2)
    assert critic(obs, actions).shape == (6, 3, 1)
    assert critic(obs, actions, th.tensor([4, 1])).shape == (2, 3, 1)


def test_draw_members_is_uniform_and_without_replacement():
    th.manual_seed(0)
    draws = draw_members(4000, 5, 2, th.device("cpu"))
    assert (draws[:, 0] != draws[:, 1]).all()
    counts = th.bincount(draws.flatten(), minlength=5)
    assert ((counts - 1600).abs() < 160).all()
    assert draw_members(3, 5, 5, th.device("cpu")) is None


# --- Standardisation, schedules, matrix products ---------------------------------------------------------------------


def test_standardizing_extractor():
    extractor = StandardizingExtractor(spaces.Box(-100, 100, (3,)))
    rows = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]], np.float32)
    th.testing.assert_close(extractor(th.tensor(rows)), th.tensor(rows))
    extractor.set_statistics(rows)
    output = extractor(th.tensor([[3.0, 5.0, 1.0]]))
    # deviations of 1, 0 and 0, each plus 0.001; the last is clipped
    assert output.tolist() == [[pytest.approx(1 / 1.001), 0.0, 10.0]]
    copy = StandardizingExtractor(spaces.Box(-100, 100, (3,)))
    copy.load_state_dict(extractor.state_dict())
    th.testing.assert_close(copy(th.tensor(rows)), extractor(th.tensor(rows)))
    assert list(extractor.parameters()) == []


def test_schedules():
    assert as_schedule(0.5, "x")(0.3) == 0.5
    assert as_schedule("3e-5", "x")(0.3) == 3e-5
    assert as_schedule("lin_0.8", "x")(0.25) == pytest.approx(0.2)
    assert as_schedule(lambda progress: 2 * progress, "x")(0.5) == 1.0
    for bad in ("lin_", "exp_1", "half"):
        with pytest.raises(ValueError, match="lin_<start>"):
            as_schedule(bad, "x")


def test_fast_products_are_true_fp32_and_the_setting_is_restored():
    before = th.get_float32_matmul_precision()
    a, b = th.randn(3, 200, 200), th.randn(3, 200, 200)
    with matmul_precision(th.device("cpu"), "fp32"):
        product = th.bmm(a, b)
        assert th.get_float32_matmul_precision() == ("medium" if onednn_is_fp32() else before)
    assert th.get_float32_matmul_precision() == before
    exact = th.bmm(a.double(), b.double())
    assert (product - exact).abs().max() / exact.abs().max() < FP32_MAX_ERROR
