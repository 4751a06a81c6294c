"""Search spaces for Optuna, in RL Zoo's form: one sampler and one converter an algorithm."""

from typing import Any

import optuna

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "large": [256, 256, 256]}


def sample_redq_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Values that may differ between tasks; the rest (demonstrations above all) stays as configured."""
    n_critics = trial.suggest_categorical("n_critics", [2, 5, 10])
    sampled: dict[str, Any] = {
        "n_critics": n_critics,
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "tau": trial.suggest_float("tau", 0.001, 0.02, log=True),
        "utd_ratio": trial.suggest_categorical("utd_ratio", [1, 5, 10, 20]),
        "layer_norm": trial.suggest_categorical("layer_norm", [False, True]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }
    trial.set_user_attr("gamma", 1 - sampled["one_minus_gamma"])
    trial.set_user_attr("batch_size", 2 ** sampled["batch_size_pow"])
    return convert_redq_params(sampled)


def convert_redq_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Sampled values -> constructor arguments."""
    params = dict(sampled_params)
    params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    params["policy_kwargs"] = {
        "layer_norm": params.pop("layer_norm"),
        "net_arch": NET_ARCHS[params.pop("net_arch")],
    }
    return params
