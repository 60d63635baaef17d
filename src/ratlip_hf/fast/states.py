"""States of the bridge's affine layers where every layer owns an LSTM: all cells in one batched product per time step.
The other recurrences have nothing to batch; their plain modules serve."""

import torch
from torch import nn

from ..models.recurrence import PerLayerStates


class BatchedCells:
    """[`PerLayerStates`] with the cells' gates computed together."""

    def __init__(self, states: PerLayerStates):
        cells = states.cells
        self.batch_as_time = states.batch_as_time
        self.layers, self.hidden = len(cells), cells[0].hidden_size
        self.input_weight = torch.cat([cell.weight_ih_l0.detach() for cell in cells])
        self.bias = torch.cat([cell.bias_ih_l0.detach() + cell.bias_hh_l0.detach() for cell in cells])
        self.hidden_weight = torch.stack([cell.weight_hh_l0.detach().T for cell in cells])

    def __call__(self, noise: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        """noise [B, Z] and text [B, D] -> one state [B, S] per layer."""
        condition = torch.cat([noise, text], dim=1)
        inputs = torch.addmm(self.bias, condition, self.input_weight.T)
        inputs = inputs.unflatten(1, (self.layers, -1)).transpose(0, 1)  # [layers, B, 4S]
        if not self.batch_as_time:
            hidden, _ = _step(inputs, inputs.new_zeros(()))
            return list(hidden.unbind())
        hidden = cell = inputs.new_zeros(self.layers, 1, self.hidden)
        for time in range(len(condition)):
            hidden, cell = _step(torch.baddbmm(inputs[:, time : time + 1], hidden, self.hidden_weight), cell)
        return list(hidden.expand(-1, len(condition), -1).unbind())


def _step(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One LSTM step; gates in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def fast_states(states: nn.Module):
    """What to call instead of a plain state module."""
    return BatchedCells(states) if isinstance(states, PerLayerStates) else states
