"""The contract that every algorithm of the package is held to; an algorithm's own test file calls ``CHECKS``."""

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import reach_env


def parameters(model: BaseAlgorithm) -> list[th.Tensor]:
    return [tensor.detach().clone() for tensor in model.policy.state_dict().values()]


def assert_same_parameters(first: BaseAlgorithm, second: BaseAlgorithm) -> None:
    for a, b in zip(parameters(first), parameters(second), strict=True):
        th.testing.assert_close(a, b, rtol=0, atol=0)


def observations(model: BaseAlgorithm, n: int = 20):
    model.observation_space.seed(0)
    return np.stack([model.observation_space.sample() for _ in range(n)])


def check_same_seed_same_result(make, tmp_path):
    models = [make(reach_env(), seed=3).learn(60) for _ in range(2)]
    assert_same_parameters(*models)
    assert any(
        (a != b).any() for a, b in zip(parameters(make(reach_env(), seed=4)), parameters(models[0]), strict=True)
    )


def check_save_and_load(make, tmp_path):
    model = make(reach_env(), seed=0).learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert_same_parameters(model, loaded)
    obs = observations(model)
    assert (model.predict(obs, deterministic=True)[0] == loaded.predict(obs, deterministic=True)[0]).all()


def check_load_without_env_predicts_and_allocates_no_buffer(make, tmp_path):
    model = make(reach_env(), seed=0).learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.env is None and getattr(loaded, "replay_buffer", None) is None
    rewards, _ = evaluate_policy(loaded, reach_env(), n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert len(rewards) == 2


def check_optimizers_survive_loading(make, tmp_path):
    model = make(reach_env(), seed=0).learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=reach_env())
    saved, restored = model.get_parameters(), loaded.get_parameters()
    assert sorted(saved) == sorted(restored)
    for name in saved:
        if "optimizer" in name:
            for key, state in saved[name]["state"].items():
                for field, value in state.items():
                    th.testing.assert_close(restored[name]["state"][key][field], value)


def check_learning_goes_on_after_loading(make, tmp_path):
    model = make(reach_env(), seed=0).learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    loaded.set_env(make_vec_env(reach_env))
    before = parameters(loaded)
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 120
    assert any((a != b).any() for a, b in zip(before, parameters(loaded), strict=True))


def check_callbacks_and_success_rates_are_logged(make, tmp_path):
    model = make(reach_env(), seed=0)
    evaluation = EvalCallback(make_vec_env(reach_env), eval_freq=30, n_eval_episodes=2, verbose=0)
    seen: dict[str, float] = {}
    model.set_logger(_capture(seen))
    model.learn(120, callback=evaluation, log_interval=1)
    assert {"eval/success_rate", "rollout/success_rate", "rollout/ep_rew_mean", "train/n_updates"} <= set(seen)


def check_several_environments_and_normalisation(make, tmp_path):
    env = VecNormalize(make_vec_env(reach_env, n_envs=3), norm_reward=False)
    model = make(env, seed=0).learn(90)
    assert model.num_timesteps == 90
    assert all(th.isfinite(tensor).all() for tensor in parameters(model))


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]


def _capture(seen: dict[str, float]):
    from stable_baselines3.common.logger import KVWriter, Logger

    class Capture(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            seen.update(key_values)

        def close(self):
            pass

    return Logger(folder=None, output_formats=[Capture()])


def learn_and_capture(model: BaseAlgorithm, timesteps: int, **kwargs) -> dict[str, float]:
    """Train, and return the last value of each logged key."""
    seen: dict[str, float] = {}
    model.set_logger(_capture(seen))
    model.learn(timesteps, log_interval=1, **kwargs)
    return seen
