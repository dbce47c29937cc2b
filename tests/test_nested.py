"""Parameters as nested dictionaries and back."""

import jax
import numpy as np
import pytest

import lstmx
from lstmx.nested import layout_of, nest, unnest

NETWORKS = {
    "cell": lstmx.LSTM(2),
    "no bias": lstmx.GRU(2, use_bias=False),
    "bidirectional": lstmx.Bidirectional(lstmx.LSTM(2), lstmx.GRU(3)),
    "12 layers": lstmx.Stack((lstmx.Elman(2),) * 12),
}


def numbered(network):
    """Parameters whose leaves are their own positions."""
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), 2))
    return jax.tree.unflatten(jax.tree.structure(params), range(jax.tree.structure(params).num_leaves))


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    params = numbered(NETWORKS[name])
    layout = layout_of(params)
    nested = nest(params, layout)
    assert unnest(nested, layout) == params
    # Neither does the order of the entries matter, which Flax sorts by name.
    assert unnest(jax.tree.map(lambda leaf: leaf, nested), layout) == params
    assert {type(node) for node in [nested, *nested.values()]} == {dict}


def test_names_are_those_of_the_fields():
    net = lstmx.Stack((lstmx.Bidirectional(lstmx.LSTM(2)), lstmx.Elman(2, use_bias=False)))
    params = numbered(net)
    lstm = {"input": {"bias": 0, "kernel": 1}, "recurrent": {"kernel": 2}}
    assert nest(params, layout_of(params)) == {
        "0": {"forward": lstm, "backward": jax.tree.map(lambda k: k + 3, lstm)},
        "1": {"input": {"kernel": 6}, "recurrent": {"kernel": 7}},
    }


def test_twelve_layers_keep_their_order():
    params = numbered(NETWORKS["12 layers"])
    nested = nest(params, layout_of(params))
    assert list(nested) == [str(k) for k in range(12)]
    assert [nested[str(k)]["recurrent"]["kernel"] for k in range(12)] == [3 * k + 2 for k in range(12)]


def test_leaf_and_node_are_applied():
    params = numbered(NETWORKS["cell"])
    layout = layout_of(params)
    nested = nest(params, layout, leaf=lambda k: [k], node=lambda items: ("node", items))
    assert nested[0] == "node"
    assert nested[1]["input"] == ("node", {"bias": [0], "kernel": [1]})
    boxed = nest(params, layout, leaf=lambda k: [k])
    assert unnest(boxed, layout, leaf=lambda box: box[0]) == params


def test_a_missing_parameter_is_named():
    params = numbered(NETWORKS["cell"])
    nested = nest(params, layout_of(params))
    del nested["recurrent"]["kernel"]
    with pytest.raises(KeyError, match="kernel"):
        unnest(nested, layout_of(params))


def test_layouts_are_hashable():
    layouts = [layout_of(NETWORKS["cell"].init(jax.random.key(k), 2)) for k in range(2)]
    assert len(set(layouts)) == 1
    assert layouts[0] != layout_of(numbered(NETWORKS["12 layers"]))
    assert np.all([isinstance(name, str) for path in layouts[0].paths for name in path])
