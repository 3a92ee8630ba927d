"""The dry run's estimate for weights that are larger than memory."""

from __future__ import annotations

import json

import pytest

from utils.benchmark import run_benchmark
from utils.planning.streaming import estimate, measured_rate
from utils.setup import UserError

GB = 10**9


def test_weights_that_fit_are_not_read_from_disk():
    result = estimate(
        weight_bytes=14 * GB, read_per_token=14 * GB, cache_bytes=GB, memory_bytes=15 * GB
    )
    assert result.disk_bytes_per_token == 0
    assert result.disk_seconds_per_token is None


def test_what_has_no_room_beside_the_cache_is_read_for_each_token():
    result = estimate(14 * GB, 13 * GB, cache_bytes=GB, memory_bytes=6 * GB, disk_rate=GB / 2)
    assert result.disk_bytes_per_token == 8 * GB
    assert result.disk_seconds_per_token == pytest.approx(16)


def test_memory_that_the_cache_fills_holds_no_weights():
    result = estimate(14 * GB, 14 * GB, cache_bytes=3 * GB, memory_bytes=2 * GB, disk_rate=GB)
    assert result.disk_bytes_per_token == 14 * GB


def test_the_disks_rate_is_measured_where_the_maps_are(tmp_path):
    assert measured_rate(tmp_path) > 1e6
    assert not list(tmp_path.iterdir())
    assert measured_rate(tmp_path / "nowhere") is None


def test_dry_run_tells_bytes_and_seconds_of_a_token(capsys):
    words = ["--config", "bloom_7B1", "--dry_run", "--memory-gb", "6", "--disk-gb-per-s", "0.5"]
    run_benchmark([*words, "--json"])
    plan = json.loads(capsys.readouterr().out)
    streaming = plan["streaming"]
    room = 6 * GB - plan["cache_bytes"]
    assert plan["weight_bytes_all_replicas"] == pytest.approx(2 * 7_069_017_024, rel=1e-3)
    read = min(plan["bytes_read_per_token"], plan["weight_bytes_all_replicas"])
    assert streaming["disk_bytes_per_token"] == read - room
    assert streaming["disk_seconds_per_token"] * 0.5e9 == streaming["disk_bytes_per_token"]
    run_benchmark(words)
    text = capsys.readouterr().out
    assert "memory is 6.00 GB" in text and "500 MB/s" in text


@pytest.mark.parametrize("name", ["memory_gb", "disk_gb_per_s"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(UserError, match=f"{name} must be 0 or more, not -1.0"):
        run_benchmark(["--dry_run", f"--{name}", "-1"])
