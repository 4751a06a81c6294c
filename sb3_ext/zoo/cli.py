"""The command ``sb3-ext``."""

import argparse
import sys
from pathlib import Path

from sb3_ext.version import __version__

USAGE = """\
usage: sb3-ext [-h] [--version] {train,enjoy,collect} ...

  train    train an agent, arguments of RL Zoo's train (sb3-ext train --help)
  enjoy    play a trained agent, arguments of RL Zoo's enjoy
  collect  record demonstrations as a Minari dataset
"""

# Where RL Zoo's train writes; its enjoy looks into a folder of downloaded agents instead
TRAIN_FOLDER = "logs"


def main(argv: list[str] | None = None) -> None:
    """
    Entry point.

    :param argv: arguments without the program's name, ``sys.argv[1:]`` by default
    """
    argv = sys.argv[1:] if argv is None else argv
    command, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    commands = {"train": _train, "enjoy": _enjoy, "collect": _collect}
    if command in commands:
        commands[command](arguments)
    elif command == "--version":
        print(f"sb3-ext {__version__}")
    elif command in ("-h", "--help"):
        print(USAGE, end="")
    else:
        sys.exit(f"{USAGE}\nsb3-ext: error: unknown command {command!r}")


def _train(argv: list[str]) -> None:
    from sb3_ext.zoo.registration import register

    register()
    import rl_zoo3.train

    sys.argv = ["sb3-ext train", *argv]
    rl_zoo3.train.train()


def _enjoy(argv: list[str]) -> None:
    from sb3_ext.zoo.registration import register

    register()
    import rl_zoo3.enjoy

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="ppo")
    if Path(TRAIN_FOLDER, parser.parse_known_args(argv)[0].algo).is_dir():
        argv = ["--folder", TRAIN_FOLDER, *argv]  # one that the user names comes later and wins
    sys.argv = ["sb3-ext enjoy", *argv]
    rl_zoo3.enjoy.enjoy()


def _collect(argv: list[str]) -> None:
    from rl_zoo3.utils import StoreDict

    from sb3_ext.datasets import DatasetError, collect

    parser = argparse.ArgumentParser(
        prog="sb3-ext collect", description="Record episodes of an expert as a Minari dataset."
    )
    parser.add_argument("--env", required=True, help="environment id, such as MetaWorldSparse/hammer-v3")
    parser.add_argument(
        "--output", required=True, help="Minari id of the dataset; -v0 is added where it has no version"
    )
    parser.add_argument("--expert", default="scripted", help="'scripted', or the path of an SB3 model")
    parser.add_argument("--algo", help="algorithm of that model, as RL Zoo calls it")
    parser.add_argument("--episodes", type=int, default=10, help="episodes to keep")
    parser.add_argument("--noise", type=float, default=0.0, help="std of Gaussian action noise; 1 is half the range")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-failures", action="store_true", help="keep episodes without success too")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, name:value")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of that id")
    args = parser.parse_args(argv)

    import gymnasium as gym

    import sb3_ext_envs  # noqa: F401 (registers the environments)

    try:
        dataset = collect(
            env_id=args.env,
            output=args.output,
            expert=args.expert,
            algo=args.algo,
            n_episodes=args.episodes,
            noise=args.noise,
            seed=args.seed,
            only_successful=not args.keep_failures,
            env_kwargs=args.env_kwargs,
            overwrite=args.overwrite,
        )
    except (DatasetError, gym.error.Error) as error:
        sys.exit(f"sb3-ext collect: error: {error}")
    print(f"{dataset.spec.dataset_id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    print(f"in {dataset.storage.data_path.parent}")


if __name__ == "__main__":
    main()
