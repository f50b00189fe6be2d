"""The names of samples: a number for each, and the split that it falls into."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)


def hash_names(names: Iterable[str]) -> NDArray[np.int64]:
    """A number for each name, ``[N]``, int64, spread evenly: it depends on the name alone."""
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def share_out(names: Sequence[str], shares: Mapping[str, float], file: Path) -> dict[str, str]:
    """The split of each image's name, by its hash; see :func:`share_out_hashes`."""
    found = share_out_hashes(hash_names(names).view(np.uint64), shares, file, "images", lambda i: names[i])
    return dict(zip(names, found.tolist(), strict=True))


def share_out_hashes(
    hashes: NDArray[np.uint64], shares: Mapping[str, float], file: Any, noun: str, name: Callable[[int], str]
) -> NDArray[Any]:
    """The split of each hash, ``[N]``: about ``shares`` of them are held out, the others are for training.

    A split does not depend on the other hashes, unless a split would be empty: it then takes the one that is the
    nearest, and a warning says so, with ``name(i)``, of all these ``noun``.
    """
    places = hashes / 2.0**64
    edges = np.cumsum([0.0, *shares.values(), 1 - sum(shares.values())])
    parts = [*shares, "train"]
    found = np.searchsorted(edges[1:-1], places, side="right")
    for number, part in enumerate(parts):
        counts = np.bincount(found, minlength=len(parts))
        if not counts[number] and counts.max() > 1:
            distance = np.maximum(edges[number] - places, places - edges[number + 1])
            nearest = int(np.where(counts[found] > 1, distance, np.inf).argmin())
            found[nearest] = number
            log.warning(
                "%s: the hash of the names puts none of %d %s into %s, so that it takes %s; with more %s that one may "
                "be in another split.", file, len(places), noun, part, name(nearest), noun,
            )  # fmt: skip
    return np.array(parts, object)[found]
