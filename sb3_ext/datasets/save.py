"""One function that writes a dataset in any of the formats that :func:`~sb3_ext.datasets.load` reads."""

import os
from pathlib import Path
from typing import Literal

from stable_baselines3.common.save_util import save_to_pkl

from sb3_ext.datasets.d4rl import replacing_file, write_d4rl
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.folder import is_dataset_folder, write_folder
from sb3_ext.datasets.minari import check_free, minari_id, write_minari
from sb3_ext.datasets.replay_buffer import to_replay_buffer

Format = Literal["minari", "arrow", "d4rl", "sb3", "folder"]
FORMATS = ("minari", "arrow", "d4rl", "sb3", "folder")


def guess_format(target: str | os.PathLike) -> Format:
    """
    ``.hdf5`` and ``.h5`` are D4RL files, ``.pkl`` replay buffers of SB3, paths (with a leading ``.``, ``~`` or ``/``,
    or a trailing ``/``) folders of our own, everything else Minari ids.
    """
    name = os.fspath(target)
    suffix = Path(name).suffix
    if suffix in (".hdf5", ".h5"):
        return "d4rl"
    if suffix == ".pkl":
        return "sb3"
    is_path = isinstance(target, Path) or name.startswith((".", "~", os.sep)) or name.endswith(os.sep)
    return "folder" if is_path else "minari"


def check_target(target: str | os.PathLike, format: Format | None = None, overwrite: bool = False) -> None:
    """
    Find out before long work whether :func:`save` will be able to write there.

    :raises DatasetError: an unknown format, a malformed Minari id, or something exists that must not be replaced.
    """
    if format is not None and format not in FORMATS:
        raise DatasetError(f"Unknown format {format!r}; known are {', '.join(FORMATS)}.")
    format = format or guess_format(target)
    name = os.fspath(target)
    if format in ("minari", "arrow"):
        if Path(name).suffix:
            raise DatasetError(
                f"{name}: files of this kind are not written. .hdf5 is D4RL's layout, .pkl a replay buffer, ./name a "
                "folder of ours, and a name without a dot a Minari dataset."
            )
        check_free(minari_id(name), overwrite)
        return
    path = Path(name).expanduser()
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise DatasetError(f"{path} exists. Choose another target or add --overwrite (overwrite=True).")
    if path.exists() and format == "folder" and not is_dataset_folder(path) and any(path.iterdir()):
        raise DatasetError(f"{path} exists and is no dataset. Choose another folder.")


def save(dataset: Dataset, target: str | os.PathLike, format: Format | None = None, overwrite: bool = False) -> Path:
    """
    Write a dataset.

    What a format cannot hold: D4RL no Dict observations; SB3's buffers no metadata, infos and no episode that just
    stops (it comes back as truncated), of two flags only the terminal one, and actions exactly only where the bounds
    are -1 and 1; Minari no transforms.
    An episode that just stops is marked by ``timeouts`` in a D4RL file.

    :param target: path or Minari id
    :param format: ``"minari"``, ``"arrow"`` (Minari with Arrow files), ``"d4rl"``, ``"sb3"`` or ``"folder"``; see
        :func:`guess_format` for the default
    :param overwrite: replace what is there, once all is written
    :return: the file or folder that was written
    :raises DatasetError: something is there, the format cannot hold the data, or it cannot be written.
    """
    if not isinstance(dataset, Dataset):
        raise DatasetError(f"save(dataset, target) needs a Dataset first, not {dataset!r}.")
    check_target(target, format, overwrite)
    format = format or guess_format(target)
    name = os.fspath(target)
    path = Path(name).expanduser()
    if format in ("minari", "arrow"):
        written = write_minari(dataset, name, "hdf5" if format == "minari" else "arrow", overwrite)
        return Path(written.storage.data_path).parent
    if format == "d4rl":
        write_d4rl(dataset, path)
    elif format == "sb3":
        buffer = to_replay_buffer(dataset, device="cpu")
        with replacing_file(path) as temporary, temporary.open("wb") as file:
            save_to_pkl(file, buffer)
    else:
        write_folder(dataset, path)
    return path
