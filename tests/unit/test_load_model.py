"""The simulation of the graph under load obeys what holds of every queue."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load_model import STATIONS, Cost, Engine, Measured, Plan, World, plan_of

KEPT = Path(__file__).parents[2] / "benchmarks" / "capacity.json"
PLAN = Plan(
    costs=dict.fromkeys(STATIONS, Cost()) | {"client": Cost(0.001), "Gateway": Cost(0.010)},
    engine=Engine(prefill=0.005, step=0.001, row=0.0),
    tokens=5,
    cores=2,
    commit_s=0.004,
    background=0.0,
    crowded=dict.fromkeys(STATIONS, 1.0),
)  # a request alone: 1 ms of the client, 10 of the gateway, 5 + 4 * 1 of the engine, 4 of the disk


def test_one_client_waits_for_the_sum_of_everything():
    """Nothing is in its way: 24 ms, of which the first token takes all but the steps behind it and the commit."""
    point = World(PLAN, 1).run(10.0)
    assert point.requests_per_s == pytest.approx(1000 / 24, rel=0.03)
    assert point.first_s == pytest.approx(0.016, rel=0.03)


def test_a_crowd_gets_what_the_busiest_process_carries():
    """The gateway is one thread: 10 ms of a request are 100 a second, however many cores there are."""
    plan = replace(PLAN, cores=8, engine=Engine(prefill=0.001, step=0.001, row=0.0))
    assert World(plan, 32).run(5.0).requests_per_s == pytest.approx(100, rel=0.05)


def test_all_processes_share_the_cores():
    """Where two gateways want 20 ms of one core in each 10, they get half of it."""
    costs = PLAN.costs | {"Gateway": Cost(0.010), "Embedder": Cost(0.009)}
    told = World(replace(PLAN, cores=1, costs=costs), 16).run(5.0)
    whole = sum(told.cpu.values())
    assert told.requests_per_s * whole == pytest.approx(1.0, rel=0.05)


def test_two_gateways_carry_twice_as_much_where_each_has_its_machine():
    """And engines that keep up."""
    plan = replace(PLAN, apart=True, engines=4)
    one, two = (World(replace(plan, gateways=gateways), 48).run(5.0) for gateways in (1, 2))
    assert two.requests_per_s == pytest.approx(2 * one.requests_per_s, rel=0.1)


def test_what_a_crowd_makes_cheaper_is_cheaper_only_in_a_crowd():
    """The costs of one client are those that were measured of it."""
    cheaper = replace(PLAN, crowded=dict.fromkeys(STATIONS, 0.5))
    assert World(cheaper, 1).run(5.0).requests_per_s == pytest.approx(World(PLAN, 1).run(5.0).requests_per_s, rel=0.02)
    assert World(cheaper, 32).run(5.0).requests_per_s > 1.5 * World(PLAN, 32).run(5.0).requests_per_s


@pytest.mark.parametrize("rag", [False, True])
def test_what_was_measured_is_simulated_within_15_percent(rag: bool):
    """Every crowd of the last run of `benchmarks.capacity`, of which the model knows no speed: how many are answered,
    and when their first token comes.
    """
    found = Measured.model_validate_json(KEPT.read_text(encoding="utf-8"))
    plan = plan_of(found, rag=rag)
    (way,) = [way for way in found.ways if way.rag is rag]
    assert len(way.crowds) == 4
    for seen in way.crowds:
        told = World(plan, seen.clients).run(20.0)
        assert told.requests_per_s == pytest.approx(seen.requests_per_s, rel=0.15), seen.clients
        assert told.first_s == pytest.approx(seen.first_s, rel=0.15), seen.clients
