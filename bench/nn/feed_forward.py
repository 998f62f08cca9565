"""A feed-forward as a sub-layer: a unit is a neuron."""

from torch import Tensor, nn

from bench.config import FeedForwardPaths
from bench.nn.packing import Context
from bench.nn.sublayer import SubLayer


class FeedForward(SubLayer):
    """Two linear maps with an activation function between them, perhaps gated; a unit is a neuron.

    Gated: down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202).
    """

    kind = "feed_forward"
    projection_type = "down"
    in_tuple = False

    def __init__(self, layer: nn.Module, paths: FeedForwardPaths, neurons: int, norm_first: bool = False) -> None:
        super().__init__(layer, paths, {"up": paths.up, **({"gate": paths.gate} if paths.gate else {})}, neurons, norm_first)
        self.activation = layer.get_submodule(paths.activation)

    def features(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The neurons' outputs, and the hidden state itself."""
        seen = self.read(hidden)
        up, *gate = (one.linear(seen) for one in self.producers)
        return (self.activation(gate[0]) * up if gate else self.activation(up)), hidden
