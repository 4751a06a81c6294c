"""The command ``sb3-ext``."""

import argparse
import sys
from pathlib import Path

from sb3_ext.version import __version__

USAGE = """\
usage: sb3-ext [-h] [--version] {train,enjoy,collect,dataset} ...

  train    train an agent, arguments of RL Zoo's train (sb3-ext train --help)
  enjoy    play a trained agent, arguments of RL Zoo's enjoy
  collect  record episodes of an expert, a planner, a model or at random as a dataset
  dataset  info, convert, validate, plot: look at, check and convert datasets
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
    commands = {"train": _train, "enjoy": _enjoy, "collect": _collect, "dataset": _dataset}
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

    from sb3_ext.datasets import DatasetError

    sys.argv = ["sb3-ext train", *argv]
    try:
        rl_zoo3.train.train()
    except DatasetError as error:
        sys.exit(f"sb3-ext train: error: {error}")


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
    from sb3_ext.datasets.cli import run_collect

    run_collect(argv)


def _dataset(argv: list[str]) -> None:
    from sb3_ext.datasets.cli import run_dataset

    run_dataset(argv)


if __name__ == "__main__":
    main()
