"""Factories: when data is made, in which shape, and where it is kept."""

import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import popxl
import pytest
import torch
from popxl_addons import NamedVariableFactories, VariableFactory
from popxl_addons.initialisers import Initialiser, full, truncated_normal


def _host(variable):
    """What a session holds for a variable before anything runs."""
    return popxl.Session(variable.ir, "cpu").get_tensor_data(variable)


@pytest.fixture
def two_groups():
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        yield ir.replica_grouping(stride=1, group_size=2)


def test_shape_and_dtype_are_those_of_the_data(main_graph):
    for data in (np.ones((2, 3), np.float16), torch.ones((2, 3), dtype=torch.float16)):
        factory = VariableFactory(lambda data=data: data, name="w")

        assert factory.shape == (2, 3)
        assert factory.dtype == popxl.float16


def test_data_takes_the_dtype_asked_for(main_graph):
    factory = VariableFactory(lambda: np.array([1.5, 2.5]), popxl.bfloat16, "w")

    assert factory.next_data().dtype == ml_dtypes.bfloat16
    assert factory.next_data().tolist() == [1.5, 2.5]
    assert factory.create_tensor().dtype == popxl.bfloat16


def test_an_iterator_gives_its_values_in_order(main_graph):
    factory = VariableFactory(iter(np.arange(3, dtype=np.int32)), name="offset")

    assert [int(factory.next_data()) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="offset: its data ran out"):
        factory.next_data()


def test_each_replica_group_gets_the_next_value(two_groups):
    counter = itertools.count()
    factory = VariableFactory(
        (np.full(3, i, np.float32) for i in counter), name="w", replica_grouping=two_groups
    )

    assert factory.host_shape == (2, 3)
    assert factory.next_data().tolist() == [[0] * 3, [1] * 3]
    assert factory.next_data().tolist() == [[2] * 3, [3] * 3]


def test_described_data_is_not_made_before_it_is_needed(main_graph):
    calls = []

    class Described:
        shape, dtype = (2,), np.dtype(np.float32)

        def __call__(self):
            calls.append(1)
            return np.zeros(2, np.float32)

    factory = VariableFactory(Described(), name="w")
    assert (factory.shape, factory.dtype, calls) == ((2,), popxl.float32, [])

    factory.next_data()
    assert calls == [1]


def test_a_function_that_is_tried_out_costs_no_memory_for_good(main_graph):
    tracemalloc.start()
    factory = VariableFactory(lambda: np.zeros((1024, 1024)), popxl.float16, "w")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert factory.shape == (1024, 1024)
    assert held < 2**20


def test_64_bit_data_makes_32_bit_variables(main_graph):
    assert VariableFactory(lambda: np.zeros(2)).dtype == popxl.float32
    assert VariableFactory(lambda: 3).dtype == popxl.int32
    assert VariableFactory([torch.zeros(2, dtype=torch.float64)]).dtype == popxl.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "w: data_iter is a function or an iterable, got int; .*`lambda: value`"),
        ([], "w: its data_iter is empty"),
        (lambda: 1 / 0, "w: its data_iter failed: division by zero"),
    ],
)
def test_unusable_data_is_refused_by_name(main_graph, data, message):
    with pytest.raises(ValueError, match=message):
        VariableFactory(data, name="w")


def test_unusable_data_is_refused_outside_a_program_too():
    with pytest.raises(ValueError, match="data_iter failed"):
        VariableFactory(lambda: sum(1))


def test_data_of_a_changing_shape_is_refused(main_graph):
    factory = VariableFactory([np.zeros(2), np.zeros(3)], name="w")
    factory.next_data()

    with pytest.raises(ValueError, match=r"w: its data had shape \(2,\), now it has \(3,\)"):
        factory.next_data()


def test_a_variable_is_not_split_into_more_parts_than_replicas_share_it(main_graph):
    with pytest.raises(ValueError, match="w: shard_over=2, but 1 replicas share its value"):
        VariableFactory(lambda: np.zeros(4), name="w", shard_over=2)


def test_initialisers_make_what_they_say():
    np.random.seed(7)
    values = truncated_normal((100, 100), 0.5)()
    np.random.seed(7)

    assert values.dtype == np.float32
    assert np.abs(values).max() <= 1
    assert np.abs(values).max() > 0.99
    assert abs(values.std() - 0.5 * 0.8796) < 0.01  # of a normal distribution cut at 2 sigma
    np.testing.assert_array_equal(truncated_normal((100, 100), 0.5)(), values)
    assert full((2, 2), 3, np.int32)().tolist() == [[3, 3], [3, 3]]


@pytest.fixture
def factories(main_graph):
    return _factories()


def _factories():
    return NamedVariableFactories.from_dict(
        {
            "norm.weight": VariableFactory(full((3,), 1), popxl.float32, "weight"),
            "attention.weight": VariableFactory(full((2, 3), 2), popxl.bfloat16, "weight"),
        }
    )


def test_init_makes_named_variables(factories):
    variables = factories.init("layer.0")

    assert variables.keys_flat() == ["attention.weight", "norm.weight"]
    assert variables.attention.weight.name == "layer.0.attention.weight"
    assert variables.attention.weight.dtype == popxl.bfloat16
    assert _host(variables.attention.weight).tolist() == [[2] * 3] * 2


def test_variables_outlive_the_program_in_a_memory_map(tmp_path):
    with popxl.Ir().main_graph:
        factories = _factories()
        first = factories.init("layer.0", memmap_dir=str(tmp_path))
    expected = {name: np.array(_host(t)) for name, t in first.to_dict().items()}

    def fail(shape):
        raise AssertionError("the data is there, none should be made")

    with popxl.Ir().main_graph:
        unmakeable = NamedVariableFactories.from_dict(
            {
                name: VariableFactory(Initialiser(factory.shape, fail), factory.dtype, name)
                for name, factory in factories.to_dict().items()
            }
        )
        again = unmakeable.init("layer.0", memmap_dir=str(tmp_path), read_only_if_exists=True)

        assert sorted(p.name for p in tmp_path.glob("*.npy")) == [
            "layer.0.attention.weight.npy",
            "layer.0.norm.weight.npy",
        ]
        for name, variable in again.to_dict().items():
            np.testing.assert_array_equal(_host(variable), expected[name])


def test_a_memory_map_has_an_entry_for_each_replica_group(two_groups, tmp_path):
    factory = VariableFactory(
        (np.full(3, i, np.float32) for i in itertools.count()),
        name="w",
        replica_grouping=two_groups,
    )

    mapped = factory.next_memmap(str(tmp_path), "w")

    assert mapped.tolist() == [[0] * 3, [1] * 3]
    assert np.load(tmp_path / "w.npy").tolist() == [[0] * 3, [1] * 3]


def test_a_memory_map_for_another_configuration_is_refused(factories, tmp_path):
    factories.init("layer.0", memmap_dir=str(tmp_path))
    wider = VariableFactory(full((5,), 1), popxl.float32, "weight")

    with pytest.raises(ValueError, match=r"norm\.weight\.npy holds float32 \(3,\)"):
        wider.create_tensor("layer.0.norm.weight", memmap_dir=str(tmp_path))


def test_a_variable_without_a_name_cannot_be_kept_in_a_file(main_graph, tmp_path):
    with pytest.raises(ValueError, match="without a name"):
        VariableFactory(full((2,), 1)).create_tensor(memmap_dir=str(tmp_path))


@pytest.mark.parametrize("in_files", [False, True])
def test_empty_variables_of_terabytes_take_no_memory(two_groups, tmp_path, in_files):
    shape = (2**20, 2**14)  # 32 GiB a group at 16 bits
    factories = NamedVariableFactories(
        weight=VariableFactory(truncated_normal(shape), popxl.float16, "weight", False, two_groups)
    )
    memmap_dir = str(tmp_path) if in_files else None
    layers = 1 if in_files else 32

    tracemalloc.start()
    variables = [factories.init(f"layer.{i}", True, memmap_dir) for i in range(layers)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert variables[-1].weight.shape_on_host == (2, *shape)
    assert peak < 2**20


def test_init_zero_makes_tensors_in_any_graph(run):
    (zeros,) = run(lambda: NamedVariableFactories(w=_factory()).init_zero().w)

    assert zeros.tolist() == [[0.0] * 3] * 2
    with popxl.Ir().main_graph:
        undefined = NamedVariableFactories(w=_factory()).init_undef().w
        assert (undefined.shape, undefined.dtype) == ((2, 3), popxl.float32)


def _factory():
    return VariableFactory(full((2, 3), 2), popxl.float32, "w")


def test_replica_groupings_are_those_of_the_factories(two_groups):
    factories = NamedVariableFactories(
        split=VariableFactory(full((2,), 0), replica_grouping=two_groups),
        same=VariableFactory(full((2,), 0)),
    )

    assert list(factories.replica_groupings.split.assignment) == [0, 0, 1, 1]
    assert list(factories.replica_groupings.same.assignment) == [0, 0, 0, 0]
