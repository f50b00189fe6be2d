"""Secrets in a configuration: named by a variable of the environment, never written down, never resolved in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

# The last words of a key, or of a variable of the environment, that holds what nobody else may read.
SECRET = re.compile(
    r"(^|_)((api|access|secret|private|auth)_?keys?|secrets?|passwords?|passwd|passphrase|credentials?)$", re.I
)
# A token lets somebody in; a pad_token, a mask_token or a stop_token is a symbol of a vocabulary.
TOKEN = re.compile(
    r"(^|(^|_)(access|api|auth|bearer|git|github|gitlab|hf|hub|huggingface|jwt|login|my|oauth|personal|private|refresh|"
    r"secret|security|service|session|user|wandb)_?)token$",
    re.I,
)
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # accessToken is access_Token
URL_PASSWORD = re.compile(r"\w://[^/\s:@]*:(?!\$\{)[^/\s@]+@")  # https://user:password@host
VARIABLE = re.compile(r"\$\{oc\.env:\s*['\"]?(\w+)")
SHORTEST = 4  # a shorter value is no secret, and would be found in everything


def plain_secret_error(cfg: DictConfig, overrides: Sequence[str] = ()) -> str | None:
    """What to say of the first key that holds a secret itself, and not the name of a variable with it; else None."""
    pairs = [(key, raw) for key, raw, _ in _leaves(OmegaConf.to_container(cfg, resolve=False), None)]
    pairs += [(override.lstrip("+~").partition("=")[0], override.partition("=")[2]) for override in overrides]
    for key, raw in pairs:
        text = "" if raw is None or isinstance(raw, bool) else str(raw)
        variable = re.sub(r"\W", "_", key.rsplit(".", 1)[-1]).upper()
        if URL_PASSWORD.search(text):
            return (
                f"{key} is a URL with a password, which must not be written down: name a variable of the environment "
                f"that holds it, as in {key}='https://user:${{oc.env:PASSWORD}}@…'."
            )
        if _is_secret_key(key, text) and text not in ("", "???", "null", "true", "false") and "${" not in text:
            return (
                f"{key} is a secret and must not be written down: name a variable of the environment that holds it, as "
                f"in {key}='${{oc.env:{variable}}}'."
            )
    return None


def redacted(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as it may be shown and stored: resolved, but secrets are the references that they were."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    found = {str(value) for key, text, value in _leaves(raw, resolved) if _is_secret(key, text)}
    return _masked(
        raw, resolved, {value for value in found if len(value) >= SHORTEST and value not in ("True", "False", "None")}
    )


def _is_secret(key: str, raw: Any) -> bool:
    """Whether a value is a secret by its key, or by a variable of the environment that it comes from.

    Every variable that ends in TOKEN counts: its value then stays the reference that it is, which costs nothing.
    """
    variables = VARIABLE.findall(raw) if isinstance(raw, str) else []
    return _is_secret_key(key, raw) or any(SECRET.search(name) or name.lower().endswith("token") for name in variables)


def _is_secret_key(key: str, raw: Any) -> bool:
    name = CAMEL_CASE.sub("_", key.rsplit(".", 1)[-1])
    is_number = re.fullmatch(r"-?\d+(\.\d*)?", str(raw)) is not None  # of a token: its place in a vocabulary
    return bool(SECRET.search(name) or (TOKEN.search(name) and not is_number))


def _masked(raw: Any, value: Any, secrets: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _masked(_inside(raw, key), item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(_inside(raw, i), item, secrets) for i, item in enumerate(value)]
    if value is not None and any(secret in str(value) for secret in secrets):
        return raw if isinstance(raw, str) and "${" in raw else "***"
    return value


def _leaves(raw: Any, value: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf's key, its text and its value; without values, the texts alone are walked."""
    walked = raw if value is None else value
    if isinstance(walked, dict):
        for name in walked:
            yield from _leaves(_inside(raw, name), value and value[name], f"{key}.{name}" if key else str(name))
    elif isinstance(walked, list):
        for i in range(len(walked)):
            yield from _leaves(_inside(raw, i), value and value[i], key)
    else:
        yield key, raw, value


def _inside(raw: Any, part: Any) -> Any:
    # Where the text is one reference to a whole section, each part of it is that reference.
    return raw[part] if isinstance(raw, dict | list) else raw
