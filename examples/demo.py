"""
From ten demonstrations to a solved task, in a few minutes on a CPU: ``make demo``.

A scripted expert drives a nail ten times. REDQ clones it, then learns from a reward that is 0 until the nail is in.
"""

import argparse
import shutil
import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import rl_zoo_configs
from sb3_ext import REDQ
from sb3_ext.datasets import collect

ENV_ID = "MetaWorldSparse/hammer-v3"
DATASET = "demo-hammer-10-v0"
# Two critics and one update a step instead of ten and five: minutes. Cloning stops early, or it would be all there is
QUICK = {"n_critics": 2, "utd_ratio": 1, "policy_delay": 5, "bc_pretrain_steps": 100}
# Commands as the user can type them: with their folder where the virtual environment is not activated
BIN = "" if shutil.which("sb3-ext") else f"{Path(sys.executable).parent}/"


def success_rate(model: REDQ, n_episodes: int) -> float:
    """Share of successful episodes, in percent: their reward is 1, that of the others 0."""
    mean_reward, _ = evaluate_policy(model, make_vec_env(ENV_ID, seed=1_000), n_episodes)
    return 100 * mean_reward


def plot(steps: list[int], success: list[float], path: Path) -> None:
    """Learning curve, success in percent."""
    fig, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(steps, success, marker="o")
    axes.set(
        xlabel="environment steps", ylabel="success, %", title=f"REDQ on {ENV_ID}, 10 demonstrations", ylim=(0, 103)
    )
    axes.grid(alpha=0.3)
    fig.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=10_000)
    parser.add_argument("--eval-episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # of Meta-World's scripted expert
    # The folder that RL Zoo would choose, so that `sb3-ext enjoy` finds the model
    name = ENV_ID.replace("/", "-")
    folder = args.output / "redq" / f"{name}_1"

    print("1. Ten demonstrations of the scripted expert")
    dataset = collect(ENV_ID, output=DATASET, n_episodes=10, seed=args.seed, overwrite=True)
    print(f"   Minari dataset {DATASET}: {dataset.n_episodes} episodes, {len(dataset)} steps")

    print("2. Cloning them")
    config = yaml.safe_load(rl_zoo_configs.config_path("redq").read_text())[ENV_ID]
    hyperparams = {**config, **QUICK, "demos": DATASET}
    del hyperparams["n_timesteps"]
    tensorboard = str(args.output / "tensorboard")
    model = REDQ(env=ENV_ID, seed=args.seed, device="cpu", tensorboard_log=tensorboard, **hyperparams)
    model.learn(0, tb_log_name=f"{name}_clone")  # no environment step: cloning alone
    before = success_rate(model, args.eval_episodes)
    print(f"   success of the clone: {before:.0f} % of {args.eval_episodes} episodes")

    print(f"3. Learning for {args.timesteps:,} steps from the sparse reward")
    evaluation = EvalCallback(
        make_vec_env(ENV_ID, seed=2_000),
        n_eval_episodes=20,
        eval_freq=max(args.timesteps // 10, 1),
        log_path=str(folder),
        verbose=0,
    )
    model.learn(args.timesteps, callback=evaluation, tb_log_name=name, progress_bar=True)
    after = success_rate(model, args.eval_episodes)
    print(f"   success before: {before:.0f} %, after: {after:.0f} % of {args.eval_episodes} episodes")

    model.save(folder / name)
    curve = [100 * sum(successes) / len(successes) for successes in evaluation.evaluations_successes]
    plot([0, *evaluation.evaluations_timesteps], [before, *curve], args.output / "learning_curve.png")
    print(
        f"""
Model          {folder / name}.zip
Learning curve {args.output / "learning_curve.png"}
Go on with
    {BIN}sb3-ext enjoy --algo redq --env {ENV_ID} --folder {args.output} --no-render
    {BIN}tensorboard --logdir {tensorboard}
    {BIN}sb3-ext train --algo redq --env {ENV_ID} -P"""
    )


if __name__ == "__main__":
    main()
