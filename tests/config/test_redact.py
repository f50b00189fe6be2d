"""A secret is named by a variable of the environment, is never written, and is stored as the reference it was."""

import pytest
from omegaconf import OmegaConf

from mtl.config.redact import plain_secret_error, redacted


@pytest.mark.parametrize("key", ["token", "api_key", "apikey", "access_key", "my_password", "hub.credentials"])
def test_a_secret_in_plain_text_is_named(key):
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, f"data.{key}", "hunter2", force_add=True)
    message = plain_secret_error(cfg)
    assert message.startswith(f"data.{key} is a secret and must not be written down")
    assert "hunter2" not in message
    assert plain_secret_error(OmegaConf.create(), [f"+data.{key}=hunter2"]) == message


@pytest.mark.parametrize("key", ["token_chunks", "tokens", "keyboard", "secretary", "pass"])
def test_a_key_that_only_looks_like_one_is_left(key):
    assert plain_secret_error(OmegaConf.create({key: "hunter2"}), [f"{key}=hunter2"]) is None


@pytest.mark.parametrize("value", [None, "", True, False, "???", "${oc.env:MY_TOKEN}", "${other.token}"])
def test_a_secret_that_is_absent_or_a_reference_is_left(value):
    assert plain_secret_error(OmegaConf.create({"token": value})) is None


def test_the_stored_configuration_is_resolved_except_for_secrets(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    monkeypatch.setenv("MY_NUMBER", "7")
    cfg = OmegaConf.create({
        "token": "${oc.env:MY_TOKEN}",
        "same": "${token}",
        "url": "https://user:${oc.env:MY_TOKEN}@host",
        "list": ["${token}", "hunter2 in plain text", "${number}"],
        "number": "${oc.env:MY_NUMBER}",
        "name": "${number}-a",
    })  # fmt: skip
    assert redacted(cfg) == {
        "token": "${oc.env:MY_TOKEN}",
        "same": "${token}",
        "url": "https://user:${oc.env:MY_TOKEN}@host",
        "list": ["${token}", "***", "7"],
        "number": "7",
        "name": "7-a",
    }
