"""Numbers of neurons that kernels like: rounded down to a multiple, whatever the method.

Rounding down stays within any budget and needs nothing of the method; what it saves is not spent elsewhere.
"""

import numpy as np
import torch

from bench.masks import Masks, by_array
from bench.model import PrunableModel


@torch.no_grad()
def rounded(model: PrunableModel, masks: Masks, multiple: int) -> Masks:
    """Every layer's number of kept neurons rounded down to a multiple; the neurons with the smallest weights go.

    The weights of a neuron: the norm of those that it reads with times the norm of those that it writes with, factor included.
    A layer with fewer neurons than `multiple` is left as it is: it would lose all of them.
    """
    result = Masks(masks.heads.copy(), masks.neurons.copy())
    for layer, sublayer in enumerate(by_array(model.sublayers)[1]):
        kept = np.flatnonzero(masks.neurons[layer])
        surplus = len(kept) % multiple if len(kept) >= multiple else 0
        if not surplus:
            continue
        incoming, outgoing = (weights.double().norm(dim=1) for weights in (sublayer.incoming(), sublayer.outgoing()))
        size = (incoming * outgoing).cpu().numpy() * np.abs(masks.neurons[layer])
        result.neurons[layer, kept[np.argsort(size[kept], kind="stable")[:surplus]]] = 0.0
    return result
