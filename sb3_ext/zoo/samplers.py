"""Search spaces for Optuna, in RL Zoo's form: a sampler for each algorithm, and a converter."""

from typing import Any

import optuna

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "large": [256, 256, 256]}


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Sampled values of any of our algorithms -> constructor arguments."""
    params = dict(sampled_params)
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    if "one_minus_gamma" in params:
        params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["policy_kwargs"] = {"net_arch": NET_ARCHS[params.pop("net_arch")]}
    if "layer_norm" in params:
        params["policy_kwargs"]["layer_norm"] = params.pop("layer_norm")
    return params


def _convert(trial: optuna.Trial, sampled: dict[str, Any]) -> dict[str, Any]:
    """Convert, and show the true values of what was sampled in another form."""
    params = convert_params(sampled)
    for name in {"gamma", "batch_size"} & params.keys():
        trial.set_user_attr(name, params[name])
    return params


def sample_redq_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Values that may differ between tasks; the rest (demonstrations above all) stays as configured."""
    sampled = {
        "n_critics": trial.suggest_categorical("n_critics", [2, 5, 10]),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "tau": trial.suggest_float("tau", 0.001, 0.02, log=True),
        "utd_ratio": trial.suggest_categorical("utd_ratio", [1, 5, 10, 20]),
        "layer_norm": trial.suggest_categorical("layer_norm", [False, True]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }
    return _convert(trial, sampled)


def sample_bcppo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """How far and how fast the policy leaves its clone; demonstrations and cloning stay as configured."""
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 3e-6, 1e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 10),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.8, 0.99),
        "n_epochs": trial.suggest_categorical("n_epochs", [3, 5, 10, 20]),
        "ent_coef": trial.suggest_float("ent_coef", 1e-6, 0.01, log=True),
        "kl_coef": trial.suggest_float("kl_coef", 1e-3, 10, log=True),
        "target_kl": trial.suggest_categorical("target_kl", [0.01, 0.03, 0.1]),
    }
    return _convert(trial, sampled)


# Offline algorithms. Their ranges hold the papers' values. Temperatures and weights of losses depend on the scale of
# values: with a reward of -1 a step these lie near -100, where D4RL's rewards of 0 and 1 give less than 1.


def _sample_network(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 10),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }


def _sample_with_values(trial: optuna.Trial, n_steps: tuple[int, ...] = (1, 3, 10)) -> dict[str, Any]:
    return {
        **_sample_network(trial),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.001, 0.03, log=True),
        "n_steps": trial.suggest_categorical("n_steps", n_steps),
    }


def _sample_critics(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "tau": trial.suggest_float("tau", 0.001, 0.02, log=True),
        "layer_norm": trial.suggest_categorical("layer_norm", [False, True]),
    }


def _sample_with_critics(trial: optuna.Trial) -> dict[str, Any]:
    return {**_sample_with_values(trial), **_sample_critics(trial)}


def _sample_soft_actor_critic(trial: optuna.Trial) -> dict[str, Any]:
    """Of Cal-QL and EDAC, whose actors as published do not clone."""
    return {
        **_sample_with_critics(trial),
        "actor_bc_coef": trial.suggest_categorical("actor_bc_coef", [0.0, 0.01, 0.1, 0.5, 1.0]),
    }


def sample_bc_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, and how many of the episodes are cloned."""
    top_percent = trial.suggest_categorical("top_percent", [10, 25, 50, 100])
    return _convert(trial, {**_sample_network(trial), "top_percent": top_percent})


def sample_awac_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, discount, and the weights of actions."""
    sampled = {
        **_sample_with_critics(trial),
        "awac_lambda": trial.suggest_float("awac_lambda", 0.05, 100, log=True),
        "weighting": trial.suggest_categorical("weighting", ["exponential", "softmax"]),
    }
    return _convert(trial, sampled)


def sample_iql_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, discount, the expectile, the weights of actions, and whether critics judge them."""
    action_values = trial.suggest_categorical("action_values", [True, False])
    sampled = {
        **_sample_with_values(trial, (1, 3, 10, 25)),
        **(_sample_critics(trial) if action_values else {}),
        "action_values": action_values,
        "expectile": trial.suggest_float("expectile", 0.5, 0.95),
        "weight_temp": trial.suggest_float("weight_temp", 0.01, 20, log=True),
    }
    return _convert(trial, sampled)


def sample_rebrac_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, discount, and how near to the data actor and critic stay."""
    sampled = {
        **_sample_with_critics(trial),
        "actor_bc_coef": trial.suggest_float("actor_bc_coef", 0.0005, 2, log=True),
        "critic_bc_coef": trial.suggest_categorical("critic_bc_coef", [0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5]),
    }
    return _convert(trial, sampled)


def sample_calql_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, discount, how conservative the critics are, and how near to the data the actor stays."""
    sampled = {
        **_sample_soft_actor_critic(trial),
        "cql_alpha": trial.suggest_float("cql_alpha", 0.1, 20, log=True),
        "n_actions": trial.suggest_categorical("n_actions", [1, 4, 10]),
    }
    return _convert(trial, sampled)


def sample_edac_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Networks, discount, how many critics differ how much, and how near to the data the actor stays."""
    sampled = {
        **_sample_soft_actor_critic(trial),
        "eta": trial.suggest_categorical("eta", [0.0, 1.0, 5.0, 10.0, 100.0]),
        "n_critics": trial.suggest_categorical("n_critics", [5, 10, 20, 50]),
    }
    return _convert(trial, sampled)
