"""Fixtures: isolation from the user's W&B settings and key, and a W&B server on 127.0.0.1."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
from support.recording import isolate, tear_down
from support.wandb_server import WandbServer


@pytest.fixture(scope="module", autouse=True)
def isolated_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def isolated(isolated_module: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context():
        before = dict(os.environ)
        yield
        tear_down()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def online(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A server that the environment points to, with a key."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="mtl")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("mtl")
    ]
