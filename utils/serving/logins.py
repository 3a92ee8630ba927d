"""Passwords: compared in constant time, and guessed slowly."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from utils.serving.limits import Limits


def checker(user: str, password: str) -> Callable[[str, str], bool]:
    """Whether a name and a password are these, in a time that does not tell how near they are."""
    key = secrets.token_bytes(32)

    def digest(text: str) -> bytes:
        return hmac.digest(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)

    names = digest(user), digest(password)

    def check(given_user: str, given_password: str) -> bool:
        right_user = hmac.compare_digest(digest(given_user), names[0])
        return hmac.compare_digest(digest(given_password), names[1]) & right_user

    return check


class Logins:
    """Wrong passwords by client.

    An attempt counts as wrong from its beginning on, so that many at once are no way round.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, no login until

    def wait(self, client: str) -> float:
        """Seconds until this client may try; 0 begins an attempt."""
        now = self._clock()
        wrong, until = self._wrong.pop(client, (0, 0.0))
        if now < until:
            self._wrong[client] = wrong, until
            return until - now
        wrong += 1
        self._wrong[client] = wrong, now + self._penalty(wrong)
        while len(self._wrong) > self._limits.login_clients:
            self._wrong.popitem(last=False)
        return 0.0

    def succeed(self, client: str) -> None:
        """Forget the client's wrong passwords: the last one was right."""
        self._wrong.pop(client, None)

    def _penalty(self, wrong: int) -> float:
        over = wrong - self._limits.logins
        if over < 0:
            return 0.0
        longest = self._limits.login_longest_wait
        return min(self._limits.login_wait * 2.0 ** min(over, 30), longest)
