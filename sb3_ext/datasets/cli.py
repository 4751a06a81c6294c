"""The commands ``sb3-ext collect`` and ``sb3-ext dataset info | convert | validate | plot``."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from sb3_ext.datasets.checks import BAD_EPISODES
from sb3_ext.datasets.collect import collect
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import read
from sb3_ext.datasets.save import FORMATS, check_target, save
from sb3_ext.datasets.summary import plot, summarize, validate

WHAT = "Minari id, D4RL name, or path of a Minari folder, .hdf5, .npz, .pkl or folder of ours"


def run_collect(argv: list[str]) -> None:
    """
    ``sb3-ext collect``.

    :param argv: arguments without the command's name
    """
    import gymnasium as gym
    from rl_zoo3.utils import StoreDict

    import sb3_ext_envs  # noqa: F401 (registers the environments)

    parser = argparse.ArgumentParser(prog="sb3-ext collect", description="Record episodes as a dataset.")
    parser.add_argument("--env", required=True, help="environment id, such as MetaWorldSparse/hammer-v3")
    parser.add_argument(
        "--output", required=True, help="Minari id (-v0 is added where it has no version), or path (.hdf5 is D4RL's)"
    )
    parser.add_argument("--format", choices=FORMATS, help="where the output's name does not tell")
    parser.add_argument(
        "--expert",
        nargs="+",
        default=["scripted"],
        help="'scripted', 'waypoint' (point mazes), 'random', or the path of an SB3 model; several play in turn",
    )
    parser.add_argument("--shares", nargs="+", type=float, help="how often each of several experts plays")
    parser.add_argument("--algo", help="algorithm of the models, as RL Zoo calls it")
    parser.add_argument("--episodes", type=int, help="episodes to keep (10)")
    parser.add_argument("--transitions", type=int, help="whole episodes until there are this many, instead")
    parser.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0],
        help="std of Gaussian action noise, 1 is half the range; or one each",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-failures", action="store_true", help="keep episodes without success too")
    parser.add_argument(
        "--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, name:value as in Python"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    try:
        args = parser.parse_args(argv)
    except (NameError, SyntaxError) as error:  # RL Zoo's values are Python
        parser.error(f"--env-kwargs takes Python values, text in quotes: \"goal_cell:'random'\" ({error})")

    def run() -> None:
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
            n_transitions=args.transitions,
            shares=args.shares,
            format=args.format,
        )
        print(f"{args.output}: {dataset.n_episodes} episodes, {len(dataset)} steps")

    _or_exit(parser, run, (DatasetError, gym.error.Error))


def run_dataset(argv: list[str]) -> None:
    """
    ``sb3-ext dataset``.

    :param argv: arguments without the command's name
    """
    parser = argparse.ArgumentParser(prog="sb3-ext dataset", description="Look at, check and convert datasets.")
    commands = parser.add_subparsers(required=True, metavar="{info,convert,validate,plot}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("source", help=WHAT)
    shared.add_argument("--trust", action="store_true", help="open pickles (.pkl), which can run code")
    shared.add_argument("--bad-episodes", choices=BAD_EPISODES, default="raise", help="what to do with broken episodes")

    info = commands.add_parser("info", parents=[shared], help="a readable summary")
    info.set_defaults(run=_info)
    convert = commands.add_parser("convert", parents=[shared], help="write it in another format")
    convert.add_argument("target", help="Minari id, or path; .hdf5 is D4RL's layout, .pkl a replay buffer of SB3")
    convert.add_argument("--format", choices=FORMATS, help="where the target's name does not tell")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")
    convert.set_defaults(run=_convert)
    check = commands.add_parser("validate", parents=[shared], help="check everything; exit code 1 if it is unusable")
    check.set_defaults(run=_validate)
    draw = commands.add_parser("plot", parents=[shared], help="draw returns, lengths and, for mazes, where it went")
    draw.add_argument("--output", type=Path, default=Path("dataset.png"), help="picture to write (dataset.png)")
    draw.set_defaults(run=_plot)
    args = parser.parse_args(argv)

    import sb3_ext_envs  # noqa: F401 (registers the environments)

    _or_exit(parser, lambda: args.run(args))


def _or_exit(
    parser: argparse.ArgumentParser, run: Callable[[], None], errors: tuple[type[Exception], ...] = (DatasetError,)
) -> None:
    """Expected errors as one line instead of a traceback, warnings as one line each."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {message}", file=sys.stderr)
        try:
            run()
        except errors as error:
            sys.exit(f"{parser.prog}: error: {error}")


def _info(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    facts = summarize(read(args.source, args.bad_episodes, trust=args.trust))
    table = Table(show_header=False, box=None)
    for name, fact in facts.items():
        table.add_row(name, fact)
    # A pipe has no width: facts stay on their lines
    Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(table)


def _convert(args: argparse.Namespace) -> None:
    check_target(args.target, args.format, args.overwrite)
    dataset = read(args.source, args.bad_episodes, infos=True, trust=args.trust)
    path = save(dataset, args.target, args.format, args.overwrite)
    print(f"{path}: {dataset.n_episodes} episodes, {len(dataset)} steps")


def _validate(args: argparse.Namespace) -> None:
    errors, notes = validate(args.source, args.trust, args.bad_episodes)
    for note in notes:
        print(f"warning: {note}")
    for error in errors:
        print(f"error: {error}")
    if errors:
        sys.exit(1)
    print(f"{args.source} is sound.")


def _plot(args: argparse.Namespace) -> None:
    plot(read(args.source, args.bad_episodes, trust=args.trust), args.output)
    print(f"wrote {args.output}")
