"""Random models that are measured: layers that are alike take the memory of one."""

import numpy as np

from stic.compiler.device.synthetic import synthetic
from stic.compiler.sharding import Geometry


def test_alike_layers_share_weights_and_not_codes() -> None:
    geometry = Geometry(3, 32, 2, 16, 64, 2)
    shared, distinct = (synthetic(geometry, "gelu", 8, alike=alike) for alike in (True, False))
    for model, alike in ((shared, True), (distinct, False)):
        assert model.sharded.geometry == geometry and len(model.sharded.model.layers) == geometry.layers
        assert model.sharded.head_order.shape == (3, 2) and model.sharded.neuron_order.shape == (3, 64)
        first, *others = (layer.ffn_in.weight for layer in model.sharded.model.layers)
        assert {np.shares_memory(first, other) for other in others} == {alike}
        codes = [model.matrix(layer, 0, "up").codes[8] for layer in range(geometry.layers)]
        assert not np.array_equal(codes[0], codes[1])
