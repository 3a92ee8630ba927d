"""The application that Ray Serve runs: a front, and behind it the replicas.

serve run utils.serving.replicas.application:app replicas=2 options="--config bloom_tiny"
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from utils.serving.replicas.replica import Replica
from utils.serving.replicas.router import PrefixRouter

MOST_ONGOING = 1000
"""Requests that one replica is given: its server refuses what its own queue has no room for."""

BUSY = 8
"""Requests in hand, running or queued, above which more replicas are started."""


def build(
    options: Sequence[str], replicas: tuple[int, int], processes: int = 1, cpus: float = 1.0
) -> Any:
    """The application.

    Args:
        options: of each replica's server, those of `run_inference_gradio.py`.
        replicas: how many at least and at most; between them requests decide.
        processes: of each replica.
        cpus: that Ray sets aside for each replica.
    """
    low, high = replicas
    scale: dict[str, Any] = {"num_replicas": low}
    if high > low:
        limits: dict[str, Any] = {"min_replicas": low, "max_replicas": high}
        scale = {"autoscaling_config": AutoscalingConfig(**limits, target_ongoing_requests=BUSY)}
    deployment: Any = serve.deployment  # its types know the decorator alone
    router: Any = PrefixRouter
    made = deployment(
        Replica,
        name="replica",
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=2,
        ray_actor_options={"num_cpus": cpus},
        request_router_config=RequestRouterConfig(request_router_class=router),
        **scale,
    ).bind(list(options), processes)

    def front() -> Any:
        from utils.serving.replicas.front import Front

        return Front(serve.get_deployment_handle("replica", serve.get_replica_context().app_name))

    entrance = deployment(
        serve.ingress(front)(_Entrance),
        name="front",
        max_ongoing_requests=MOST_ONGOING * max(1, high),
        ray_actor_options={"num_cpus": 0},
    )
    return entrance.bind(made)


class _Entrance:
    """Keeps the replicas in the application; the front finds them by name."""

    def __init__(self, replicas: Any):
        pass


def app(arguments: dict[str, str]) -> Any:
    """For `serve run`: `replicas` as 2 or 1:4, `options` in one text, `processes`, `cpus`."""
    return build(
        shlex.split(arguments.get("options", "")),
        replica_counts(arguments.get("replicas", "1")),
        int(arguments.get("processes", "1")),
        float(arguments.get("cpus", "1")),
    )


def replica_counts(text: str) -> tuple[int, int]:
    """Least and most, of `2` or `1:4`.

    Raises:
        ValueError: it is neither.
    """
    low, _, high = text.partition(":")
    with contextlib.suppress(ValueError):
        if 1 <= int(low) <= int(high or low):
            return int(low), int(high or low)
    raise ValueError(f"replicas must be N, or LEAST:MOST from 1 up, not {text}")
