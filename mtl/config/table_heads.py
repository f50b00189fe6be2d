"""The heads and losses of a user's own table: one for each of its targets, where no other is chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from mtl.config.checks import DEFAULT_HEAD, task_names
from mtl.config.file_checks import check_files
from mtl.data.target_names import as_list
from mtl.errors import ConfigError

log = logging.getLogger(__name__)


def take_targets(cfg: DictConfig) -> None:
    """Put the default head, and the loss of its kind, of each target of ``data=table`` into ``cfg``.

    Nothing happens where ``heads`` has no default, or the data no targets; heads and losses that are chosen for a
    target stay. ConfigError where the table does not tell the targets' kinds.
    """
    if DEFAULT_HEAD not in (cfg.get("heads") or ()) or not task_names(cfg) or OmegaConf.is_missing(cfg.data, "root"):
        return
    check_files(cfg.data)
    from mtl.data.table_configuration import LOSSES  # with pandas, which other data do not need

    heads: Any = OmegaConf.to_container(cfg.heads)
    losses: Any = OmegaConf.to_container(cfg.losses)
    default = heads.pop(DEFAULT_HEAD)
    for target, column in _columns(cfg.data).items():
        log.info("%s: %s", target, column)
        heads.setdefault(target, {**default, "out_features": column.width})
        if "_target_" not in losses:
            losses.setdefault(target, dict(LOSSES[column.kind]))
    with open_dict(cfg):
        cfg.heads, cfg.losses = heads, losses


def _columns(data: DictConfig) -> Mapping[str, Any]:
    """The targets and what they are, as the table itself will find them; ConfigError where it would fail."""
    import numpy as np

    from mtl.data.columns import encode, infer
    from mtl.data.input_table import open_files, paths_of
    from mtl.data.table_targets import targets_of
    from mtl.data.table_text import check_column

    own: Any = OmegaConf.to_container(data, resolve=True)
    kinds = own.get("kinds") or {}
    try:
        paths = paths_of(Path(own["root"]).expanduser(), own["file"])
        with _folder_in(own.get("cache")) as folder:
            table, file = open_files(paths, own.get("missing") or (), folder)
            wanted = own["targets"]
            wanted = wanted if isinstance(wanted, Mapping) else targets_of(as_list(wanted), file)
            every, found = np.ones(len(table), bool), {}
            for name, columns in wanted.items():
                named = tuple(check_column(table.columns, column, "targets", file) for column in as_list(columns))
                found[name] = encode(table, name, kinds.get(name) or infer(table, named, file), named, every, file)[0]
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    return found


@contextmanager
def _folder_in(cache: str | None) -> Iterator[Path | None]:
    """A folder of ``data.cache`` for the moment, so that the table need not be in memory; None without one."""
    if cache is None:
        yield None
        return
    place = Path(cache).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place, prefix="heads-") as folder:
        yield Path(folder)
