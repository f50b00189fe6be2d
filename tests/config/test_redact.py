"""A secret is named by a variable of the environment, is never written, and is stored as the reference it was."""

import pytest
from omegaconf import OmegaConf

from mtl.config.redact import plain_secret_error, redacted

SECRETS = [
    "token", "api_key", "apikey", "apiKey", "access_key", "my_password", "hub.credentials", "hf_token", "accessToken",
    "auth_token", "github_token", "WANDB_API_KEY", "client_secret", "private_key", "passphrase", "api_keys",
]  # fmt: skip
HARMLESS = [
    "token_chunks", "tokens", "keyboard", "secretary", "pass", "passes", "pad_token", "mask_token", "cls_token",
    "eos_token", "stop_token", "blank_token", "special_tokens", "additional_special_tokens", "num_tokens", "tokenizer",
    "key_dim", "key", "keys", "primary_key", "class_token", "global_token", "password_length", "compass", "padToken",
]  # fmt: skip


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_in_plain_text_is_named(key):
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, f"data.{key}", "hunter2", force_add=True)
    message = plain_secret_error(cfg)
    assert message.startswith(f"data.{key} is a secret and must not be written down")
    assert "hunter2" not in message
    assert plain_secret_error(OmegaConf.create(), [f"+data.{key}=hunter2"]) == message


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_only_looks_like_one_is_left(key):
    assert plain_secret_error(OmegaConf.create({key: "hunter2"}), [f"{key}=hunter2"]) is None


@pytest.mark.parametrize("key", HARMLESS)
def test_a_harmless_key_is_stored_as_it_is_and_hides_nothing_else(key):
    cfg = OmegaConf.create({key: "hunter2", "same": "hunter2"})
    assert redacted(cfg) == {key: "hunter2", "same": "hunter2"}


def test_the_place_of_a_token_in_a_vocabulary_is_no_secret_and_a_password_of_digits_is_one():
    assert plain_secret_error(OmegaConf.create({"token": 5}), ["token=5", "+data.token=-1"]) is None
    assert "password is a secret" in plain_secret_error(OmegaConf.create({"password": 123456}))


@pytest.mark.parametrize(
    ("url", "is_secret"),
    [
        ("https://me:hunter2@host/x", True),
        ("s3://:hunter2@host", True),
        ("https://me:${oc.env:ANY}@host", False),
        ("https://me@host:8080/x", False),
        ("http://localhost:8080/a@b", False),
        ("a:b@c", False),
    ],
)
def test_a_password_in_a_url_is_a_secret_whatever_its_key(url, is_secret):
    message = plain_secret_error(OmegaConf.create({"data": {"root": url}}))
    assert (message is not None) == is_secret
    assert message is None or ("data.root is a URL with a password" in message and "hunter2" not in message)


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
