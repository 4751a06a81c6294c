"""
What the hidden goal of ``antmaze-umaze`` costs. It lies anywhere within a metre, each way, of the centre of its cell,
success is within 0.45 m of it, and no observation tells where. A model with a ``HierarchicalPolicy`` plays the same
episodes three times: without its memory; with it; and, without, by subgoals towards the goal where it is near, as if it
were observed.

    python benchmarks/offline/train.py --algo rebrac --data ../shared/data/antmaze-umaze.hdf5 --seed 0 --save \\
        --output runs/ceiling
    python benchmarks/offline/ceiling.py --algo rebrac --model runs/ceiling/seed0.zip \\
        --data ../shared/data/antmaze-umaze.hdf5
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch as th
from train import ALGORITHMS, Evaluation

import sb3_ext
from sb3_ext.common.hierarchical_policy import HierarchicalPolicy
from sb3_ext.datasets import load

# Metres
CENTRE = np.array([-4.0, -4.0])
TOLD_WITHIN = 2.5
# A bit further than the data go in 20 steps, on the average
SUBGOAL_LENGTH = 1.7

# Where to head for, or None to go by the model's own subgoal: position, number of the environment
Target = Callable[[np.ndarray, int], np.ndarray | None]


class Guided:
    """
    Actions of a hierarchical policy whose subgoals are overruled.

    :param policy: the model's
    :param evaluation: that plays
    :param target: where to go instead
    """

    def __init__(self, policy: HierarchicalPolicy, evaluation: Evaluation, target: Target):
        self.policy, self.evaluation, self.target = policy, evaluation, target
        # What a difference of 1 m is for the policy, whose features may be standardised, (2,)
        rows = th.zeros(2, policy.observation_space.shape[0])  # type: ignore[index]
        rows[1, :2] = 1
        here, there = policy.where(policy.features(rows))
        self.per_metre = there - here

    @th.no_grad()
    def __call__(self, observations: np.ndarray, state: None) -> tuple[np.ndarray, None]:
        rows = th.as_tensor(observations)
        features = self.policy.features(rows)
        subgoals = self.policy.chosen_subgoals(self.policy.where(features))
        for row, i in enumerate(self.evaluation.playing):
            position = observations[row, :2]
            target = self.target(position, int(i))
            if target is not None:
                way = target - position
                way = th.as_tensor(way * SUBGOAL_LENGTH / max(np.linalg.norm(way), 1e-6), dtype=th.float32)
                subgoals[row] = self.policy.subgoals(way * self.per_metre)
        actions = self.policy.towards(subgoals, rows, features, deterministic=True)
        return actions.clamp(-1, 1).numpy(), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=[name for name in ALGORITHMS if name != "bc"], required=True)
    parser.add_argument("--model", type=Path, required=True, help="zip of a model whose policy has a memory")
    parser.add_argument("--data", required=True, help="file of antmaze-umaze")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    th.set_num_threads(1)
    model = getattr(sb3_ext, ALGORITHMS[args.algo]).load(args.model, device="cpu")
    if getattr(model.policy, "memory", None) is None:
        parser.error(f"{args.model} has no HierarchicalPolicy with a memory.")
    evaluation = Evaluation(load(args.data), args.episodes)

    def goal(position: np.ndarray, i: int) -> np.ndarray | None:
        near = np.linalg.norm(position - CENTRE) < TOLD_WITHIN
        return evaluation.envs[i].unwrapped.goal if near else None  # type: ignore[attr-defined]

    players = {
        "without a memory": Guided(model.policy, evaluation, lambda position, i: None),
        "with its memory": partial(model.predict, deterministic=True),
        "towards the goal": Guided(model.policy, evaluation, goal),
    }
    for name, player in players.items():
        score = evaluation(player)["score"]
        # Of the goals that were just played
        goals = np.stack([env.unwrapped.goal for env in evaluation.envs])  # type: ignore[attr-defined]
        is_far = np.abs(goals - CENTRE).max(axis=1) > 2 / 3
        near, far = (100 * evaluation.successes[rows].mean() for rows in (~is_far, is_far))
        print(f"{name}: {score:.0f} % (goals nearer than 2/3 m {near:.0f}, the others {far:.0f})", flush=True)


if __name__ == "__main__":
    main()
