"""Behaviour cloning into a model of any of SB3's algorithms, in place."""

from collections.abc import Callable

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from torch import nn

from sb3_ext.common.actors import CLONING_MIN_LOG_STD, DeterministicActor
from sb3_ext.common.buffers import DatasetBuffer
from sb3_ext.common.densities import acting_part, action_log_prob, has_density
from sb3_ext.common.hierarchical_policy import HierarchicalPolicy
from sb3_ext.common.losses import behaviour_cloning_loss, large_margin_loss
from sb3_ext.common.schedules import as_schedule, is_whole
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.load import DatasetLike, load_demonstrations
from sb3_ext.datasets.vec_env import as_model_sees, check_transforms, env_spec

# Observations, and actions as a replay buffer has them -> scalar
CloningLoss = Callable[[PyTorchObs, th.Tensor], th.Tensor]

# By how much the demonstrated action's value is to be above the others', as in DQfD
MARGIN = 0.8
# Networks that are cloned, and the targets that follow them
WITH_TARGET = (
    ("actor", "actor_target"),
    ("q_net", "q_net_target"),
    ("quantile_net", "quantile_net_target"),
)


def pretrain(
    model: BaseAlgorithm,
    demos: DatasetLike,
    *,
    steps: int,
    batch_size: int = 256,
    learning_rate: float | str | Schedule = 1e-3,
    init_normalization: bool = True,
) -> np.ndarray:
    """
    Clone demonstrations into a model's policy. Nothing else changes: value functions, the model's own optimizer and its
    counters stay as they are, so that ``learn`` goes on from the clone and a stock class loads what ``save`` writes.

    Stochastic policies maximise the log-likelihood of the actions, deterministic ones regress to them, and values of
    discrete actions (DQN) learn the large-margin loss of DQfD (Hester et al. 2018, https://arxiv.org/abs/1704.03732).
    Target networks of what was cloned are set to it.

    :param model: PPO, A2C, TRPO, SAC, TQC, TD3, DDPG, DQN, QR-DQN or one of this package
    :param demos: whatever :func:`sb3_ext.datasets.load` takes, or ``"scripted:10"``; recorded in the model's
        environment
    :param steps: gradient steps; 0 changes nothing
    :param batch_size: transitions in a batch
    :param learning_rate: of an Adam of its own; a number, a schedule over the steps, or a string such as
        ``"lin_1e-3"``
    :param init_normalization: a ``VecNormalize`` around the environment takes up the demonstrations' statistics, unless
        it has seen more steps than they have
    :return: the loss at each step, shape ``(steps,)``
    :raises TypeError: the policy has no action distribution, actor or values that could clone.
    :raises ValueError: an argument is out of its range.
    :raises DatasetError: the demonstrations are missing, broken or of another environment.
    """
    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"pretrain takes a model, such as PPO(...), not {model!r}.")
    schedule = as_schedule(learning_rate, "learning_rate")
    if not is_whole(steps) or not is_whole(batch_size) or steps < 0 or batch_size < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 0, batch_size={batch_size!r} of at least 1.")
    steps, batch_size = int(steps), int(batch_size)
    loss = cloning_loss(model.policy)
    if steps == 0:
        return np.empty(0)
    dataset = demonstrations_of(model, demos)
    buffer = DatasetBuffer(dataset, model.observation_space, model.action_space, device=model.device)
    normalize = model.get_vec_normalize_env()
    if init_normalization and normalize is not None:
        buffer.init_statistics(normalize)
    return clone(model, loss, buffer, steps, batch_size, schedule)


def demonstrations_of(model: BaseAlgorithm, demos: DatasetLike) -> Dataset:
    """
    Demonstrations as a model sees them.

    :raises DatasetError: they are missing, broken or of another environment.
    """
    if model.env is None:
        dataset = load_demonstrations(demos, seed=model.seed)
    else:
        dataset = load_demonstrations(demos, env_spec(model.env), model.seed)
        check_transforms(dataset.metadata, model.env)
    return as_model_sees(dataset, model.env, model.observation_space, model.action_space)


def clone(
    model: BaseAlgorithm,
    loss: CloningLoss,
    buffer: DatasetBuffer,
    steps: int,
    batch_size: int,
    schedule: Schedule,
) -> np.ndarray:
    """
    :param loss: of the model's policy
    :param schedule: learning rate by the progress that is left, which goes from 1 to 0
    :return: the loss at each step, shape ``(steps,)``
    """
    policy, normalize = model.policy, model.get_vec_normalize_env()
    # Parameters that the loss does not depend on have no gradient and are left alone
    optimizer = th.optim.Adam(policy.parameters(), lr=schedule(1.0), fused=True)
    losses = th.empty(steps, device=model.device)
    policy.set_training_mode(True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = schedule(1 - step / steps)
        samples = buffer.sample(batch_size, env=normalize)
        value = loss(samples.observations, samples.actions)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        bound_std(policy)
        losses[step] = value.detach()
    optimizer.zero_grad()
    policy.set_training_mode(False)
    if steps > 0:
        with th.no_grad():  # SB3's policies keep their last distribution, which could not be copied with its graph
            loss(samples.observations, samples.actions)
    for name, target in WITH_TARGET:
        if hasattr(policy, target):
            getattr(policy, target).load_state_dict(getattr(policy, name).state_dict())
    return losses.cpu().numpy()


def bound_std(policy: BasePolicy) -> None:
    """Cloning would shrink the standard deviation of a Gaussian that fits its demonstrations for ever."""
    if isinstance(policy, ActorCriticPolicy) and isinstance(getattr(policy, "log_std", None), nn.Parameter):
        policy.log_std.data.clamp_(min=CLONING_MIN_LOG_STD)


def cloning_loss(policy: BasePolicy) -> CloningLoss:
    """
    How a policy clones.

    :raises TypeError: it cannot
    """
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise TypeError(f"{type(policy).__name__} has a memory, and demonstrations are cloned step by step.")
    if isinstance(policy, QRDQNPolicy):
        return lambda obs, actions: large_margin_loss(policy.quantile_net(obs).mean(dim=1), actions.long(), MARGIN)
    if isinstance(policy, DQNPolicy):
        return lambda obs, actions: large_margin_loss(policy.q_net(obs), actions.long(), MARGIN)
    if isinstance(policy, HierarchicalPolicy):
        raise TypeError(
            "HierarchicalPolicy learns from where the data went: algorithm('HierarchicalPolicy', ...).learn()."
        )
    actor = acting_part(policy)
    if isinstance(actor, (TD3Actor, DeterministicActor)):
        return lambda obs, actions: (actor(obs) - actions).square().sum(dim=1).mean()
    if has_density(actor):
        return lambda obs, actions: behaviour_cloning_loss(action_log_prob(actor, obs, actions))
    raise TypeError(
        f"{type(policy).__name__} has no action distribution, actor or values of actions that demonstrations could be "
        "cloned into."
    )
