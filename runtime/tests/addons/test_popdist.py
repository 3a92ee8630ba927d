"""Which of several processes this is."""

import popdist
import pytest


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_without_a_launcher_this_is_the_only_process():
    assert not popdist.isPopdistEnvSet()
    assert popdist.getInstanceIndex() == 0
    assert popdist.getNumInstances() == 1


def test_a_launcher_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    assert popdist.isPopdistEnvSet()
    assert popdist.getInstanceIndex() == 3
    assert popdist.getNumInstances() == 4


def test_half_an_environment_is_none(monkeypatch):
    monkeypatch.setenv("RANK", "3")

    assert not popdist.isPopdistEnvSet()
    assert popdist.getInstanceIndex() == 0


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        ("4", "4", "RANK is 4, it must be 0 to 3"),
        ("-1", "4", "RANK is '-1', it must be a whole number, at least 0"),
        ("first", "4", "RANK is 'first', it must be a whole number"),
        ("0", "0", "WORLD_SIZE is '0', it must be a whole number, at least 1"),
        ("0", "many", "WORLD_SIZE is 'many', it must be a whole number"),
    ],
)
def test_an_impossible_environment_is_refused(monkeypatch, rank, size, message):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)

    with pytest.raises(ValueError, match=message):
        popdist.getInstanceIndex()
