"""A feed-forward as a sub-layer: a unit is a neuron."""

from torch import Tensor, nn

from bench.config import FeedForwardPaths
from bench.nn.packing import Context
from bench.nn.sublayer import SubLayer


class FeedForward(SubLayer):
    """Two linear maps with an activation function between them; a unit is a neuron."""

    kind = "feed_forward"
    projection_type = "down"
    in_tuple = False

    def __init__(self, layer: nn.Module, paths: FeedForwardPaths, neurons: int) -> None:
        super().__init__(layer, paths, {"up": paths.up}, neurons)
        self.activation = layer.get_submodule(paths.activation)

    def features(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The neurons' outputs, and the hidden state itself."""
        return self.activation(self.producers[0].linear(hidden)), hidden
