"""Trees of names."""

import copy

import pytest
from popxl_addons.dot_tree import DotTree, to_mapping


@pytest.fixture
def tree():
    return DotTree.from_dict({"attention.qkv.weight": 1, "attention.output.weight": 2, "norm": 3})


def test_children_are_attributes_and_items_by_dotted_names(tree):
    assert tree.attention.qkv.weight == 1
    assert tree["attention"]["output"]["weight"] == 2
    assert tree.get("attention.output.weight") == 2
    assert tree.norm == 3


def test_numbers_are_names_and_negative_ones_count_from_the_end():
    tree = DotTree.from_dict({0: "a", 1: "b", "2.weight": "c"})

    assert (tree[0], tree["1"], tree[-2]) == ("a", "b", "b")
    assert tree[-1].weight == "c"
    assert tree["-1"].weight == "c"
    for key in (3, -4):
        with pytest.raises(KeyError, match=str(key)):
            tree[key]


def test_a_missing_name_is_an_error_that_lists_what_there_is(tree):
    with pytest.raises(AttributeError, match="'feed_forward'.*attention, norm"):
        tree.feed_forward  # noqa: B018
    with pytest.raises(KeyError, match="'norm.weight'"):
        tree["norm.weight"]
    assert "norm" in tree
    assert "attention.qkv" in tree
    assert "attention.bias" not in tree


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "x."])
def test_names_are_identifiers_or_numbers(name):
    with pytest.raises(ValueError, match="neither an identifier nor a whole number"):
        DotTree().insert(f"{name}.weight" if name.endswith(".") else name, 1)


def test_numeric_names_are_not_negative():
    with pytest.raises(ValueError, match="got -1"):
        DotTree().insert(-1, 1)


def test_insert_refuses_a_taken_name_unless_it_may_overwrite(tree):
    with pytest.raises(ValueError, match="'norm' already exists"):
        tree.insert("norm", 4)
    for name in ("attention.qkv.weight", "attention.new", "norm.weight"):
        with pytest.raises(ValueError, match="already exists"):
            tree.insert(name, 4)
    tree.insert("attention.qkv.weight", 4, overwrite=True)
    tree.insert("attention.qkv.bias", 5, overwrite=True)

    assert tree.attention.qkv.to_dict() == {"weight": 4, "bias": 5}
    assert tree.attention.output.weight == 2


def test_a_cleared_tree_keeps_its_trees_and_no_leaf(tree):
    tree._clear()

    assert tree.to_dict() == {}
    assert tree.keys() == ["attention"]
    assert tree.attention.qkv.len() == 0


def test_a_failed_insert_leaves_the_tree_as_it_was(tree):
    before = tree.to_dict()

    with pytest.raises(ValueError, match="neither an identifier"):
        tree.insert("feed_forward.up.not a name", 1)

    assert tree.to_dict() == before


def test_update_merges_trees_of_the_same_name(tree):
    tree.update(DotTree.from_dict({"attention.qkv.bias": 5, "head": 6}))

    assert tree.to_dict() == {
        "attention.qkv.weight": 1,
        "attention.qkv.bias": 5,
        "attention.output.weight": 2,
        "norm": 3,
        "head": 6,
    }
    with pytest.raises(ValueError, match="already exists"):
        tree.update(DotTree(norm=7))
    with pytest.raises(ValueError, match="already exists"):
        DotTree.from_dict({"norm": 1, "norm.weight": 2})
    tree.update(DotTree(norm=7), overwrite=True)
    assert tree.norm == 7


def test_pop_removes_leaves_and_trees(tree):
    assert tree.pop("attention.qkv.weight") == 1
    assert tree.pop("attention").to_dict() == {"output.weight": 2}
    assert tree.to_dict() == {"norm": 3}
    with pytest.raises(KeyError, match="attention"):
        tree.pop("attention")


def test_a_copy_is_independent_of_its_original(tree):
    twin = tree.copy()
    twin.insert("attention.qkv.bias", 9, overwrite=True)
    twin.attention.insert("new", 9)

    assert tree.keys_flat() == ["attention.qkv.weight", "attention.output.weight", "norm"]
    assert type(twin) is type(tree)


def test_keys_values_and_lengths_come_nested_and_flat(tree):
    assert tree.keys() == ["attention", "norm"]
    assert tree.len() == 2
    assert tree.values()[1] == 3
    assert tree.values_flat() == [1, 2, 3]
    assert tree.len_flat() == 3


def test_unpack_is_in_order_of_names_and_pack_is_its_inverse(tree):
    names, leaves = tree.unpack()

    assert names == ("attention.output.weight", "attention.qkv.weight", "norm")
    assert leaves == (2, 1, 3)
    assert DotTree.pack(names, leaves).to_dict() == {**dict(zip(names, leaves, strict=True))}
    assert DotTree().unpack() == ((), ())
    with pytest.raises(ValueError, match="shorter|longer"):
        DotTree.pack(["a", "b"], [1])


def test_map_and_filter_give_new_trees(tree):
    assert tree.map(lambda leaf: leaf * 10).attention.output.weight == 20
    assert tree.filter_keys(["attention.qkv", "norm"]).keys_flat() == [
        "attention.qkv.weight",
        "norm",
    ]
    assert tree.filter_keys(["atten"]).len() == 0


def test_to_mapping_pairs_leaves_of_the_same_name(tree):
    other = DotTree.from_dict({"norm": "c", "attention.qkv.weight": "a", "extra": "x"})

    assert to_mapping(tree, other) == {1: "a", 3: "c"}
    assert tree.to_mapping(other) == {1: "a", 3: "c"}


def test_python_can_copy_trees_deeply(tree):
    assert copy.deepcopy(tree).to_dict() == tree.to_dict()
