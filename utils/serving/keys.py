"""Keys of the API: given by option, file or environment, and compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.outside import read_bytes
from utils.setup import UserError

LEAST = 16
"""Characters of a key: shorter ones can be guessed, as right keys are never made to wait."""

FILE_BYTES = 1 << 16
MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"


class Keys:
    """What opens the API: any of the keys, and the page's account where there is one.

    The account is given as `user:password`, for a key or as Basic authorization is written. It may
    be guessed, so whoever asks about it must bound how often.
    """

    def __init__(self, keys: Iterable[str] = (), account: tuple[str, str] | None = None):
        self._secret = secrets.token_bytes(32)
        self._keys = [self._digest(key) for key in keys]
        self._account = self._digest(":".join(account)) if account else None

    @property
    def asked(self) -> bool:
        """Whether the API asks for one."""
        return bool(self._keys) or self._account is not None

    def is_key(self, authorization: str) -> bool:
        """Whether the header has a key; the time taken does not tell how near it is."""
        given = self._digest(_credentials(authorization))
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0  # all are compared

    def may_be_account(self, authorization: str) -> bool:
        """Whether the header is such that the account is to be compared with it."""
        return self._account is not None and ":" in _credentials(authorization)

    def is_account(self, authorization: str) -> bool:
        """Whether the header has the account."""
        given = self._digest(_credentials(authorization))
        return self._account is not None and hmac.compare_digest(given, self._account)

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _credentials(authorization: str) -> str:
    """What follows `Bearer`, and what is encoded after `Basic`; '' for anything else."""
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def given_keys(
    option: str | None, file: str | None, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """The keys that were given, of a file one a line; none where none were.

    Raises:
        UserError: one can be guessed, or the file cannot be read or has none.
    """
    found = []
    for where, value in (
        ("--api_key", option),
        ("BLOOM_API_KEY", environment.get("BLOOM_API_KEY")),
    ):
        if value is not None:
            found.append(_checked(value.strip(), where))
    if file is not None:
        lines = read_bytes(Path(file), UserError, FILE_BYTES).decode(errors="replace").splitlines()
        keys = [_checked(line.strip(), f"a key in {file}") for line in lines if line.strip()]
        if not keys:
            raise UserError(f"--api_key_file {file} has no key: write one a line")
        found += keys
    return tuple(found)


def _checked(key: str, where: str) -> str:
    if len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"{where} must be {LEAST} or more ASCII characters without spaces: {MAKE_ONE}"
        )
    return key
