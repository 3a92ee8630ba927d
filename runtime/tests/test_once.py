"""One line is said of a death, by whichever process of the machine is there to say it."""

from __future__ import annotations

from popdist.once import claim
from processes import CONTEXT, answer, give, started


def claims(results, barrier, patient: bool) -> None:
    barrier.wait()
    give(results, claim, patient)


def claimed(count: int, patient: bool) -> int:
    results, barrier = CONTEXT.Queue(), CONTEXT.Barrier(count)
    with started(count, claims, results, barrier, patient) as processes:
        return sum(answer(results, 180)[1] for _ in processes)


def test_of_many_that_claim_at_once_one_has_it() -> None:
    assert [claimed(4, patient=False) for _ in range(3)] == [1, 1, 1]


def test_where_nobody_else_says_it_a_patient_one_does() -> None:
    assert claimed(3, patient=True) == 1
