"""The recurrence (Eqs. 3-6; docs/method.md, section 3): which state each affine layer of the bridge is given.
Every module here maps noise [B, Z] and text [B, D] to one state [B, S] per affine layer."""

import math

import torch
from torch import nn

RECURRENCES = ("across_layers", "per_layer", "batch_as_time")


class States(nn.Module):
    """One state [B, `state_dim`] per affine layer from noise [B, Z] and text [B, D]."""

    state_dim: int


class ConcatStates(States):
    """CAT fusion (GALIP): every layer reads [z, T] directly and layers do not see each other."""

    def __init__(self, noise_dim: int, text_dim: int, steps: int):
        super().__init__()
        self.state_dim, self.steps = noise_dim + text_dim, steps

    def forward(self, noise: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([noise, text], dim=1)] * self.steps


class AcrossLayersStates(States):
    """The paper's RAT: one LSTM cell shared by all affine layers, layer t being time step t.

    Equal to `torch.nn.LSTM` over T repeated `steps` times from (h_0, c_0). The input is the same at every step, so
    its part of the gates is computed once. Gates lie in torch's order i, f, u, o (torch calls u "g").
    """

    def __init__(self, noise_dim: int, text_dim: int, hidden_size: int, steps: int):
        super().__init__()
        self.state_dim, self.steps = hidden_size, steps
        self.initial_hidden = nn.Linear(noise_dim, hidden_size)  # MLP3 of Eq. 3
        self.initial_cell = nn.Linear(noise_dim, hidden_size)  # MLP4 of Eq. 3
        self.input_gates = nn.Linear(text_dim, 4 * hidden_size)  # W_s and b of Eq. 4
        self.hidden_gates = nn.Linear(hidden_size, 4 * hidden_size, bias=False)  # W_h of Eq. 4
        bound = 1 / math.sqrt(hidden_size)
        for parameter in (self.input_gates.weight, self.input_gates.bias, self.hidden_gates.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, noise: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        hidden, cell = self.initial_hidden(noise), self.initial_cell(noise)  # Eq. 3
        from_text, states = self.input_gates(text), []
        for _ in range(self.steps):
            i, f, u, o = (from_text + self.hidden_gates(hidden)).chunk(4, dim=1)  # Eq. 4
            cell = f.sigmoid() * cell + i.sigmoid() * u.tanh()  # Eq. 5
            hidden = o.sigmoid() * cell.tanh()  # Eq. 6
            states.append(hidden)
        return states


class PerLayerStates(States):
    """The released code's RAT: each affine layer owns an LSTM over [z, T] that starts from zero.

    With `batch_as_time=False` every sample is a sequence of one step. With True the batch is taken as the time axis
    and the last state modulates all samples, exactly as the released code does: samples of one batch then depend on
    each other. Both agree for a batch of one.
    """

    def __init__(self, noise_dim: int, text_dim: int, hidden_size: int, steps: int, batch_as_time: bool):
        super().__init__()
        self.state_dim, self.batch_as_time = hidden_size, batch_as_time
        self.cells = nn.ModuleList(nn.LSTM(noise_dim + text_dim, hidden_size, batch_first=True) for _ in range(steps))

    def forward(self, noise: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        condition = torch.cat([noise, text], dim=1)
        sequences = condition[None] if self.batch_as_time else condition[:, None]
        return [cell(sequences)[1][0][0].expand(condition.shape[0], -1) for cell in self.cells]


def build_states(fusion: str, recurrence: str, noise_dim: int, text_dim: int, hidden_size: int, steps: int) -> States:
    """The state source of a bridge with `steps` affine layers; `recurrence` matters for `fusion="rat"` only."""
    if fusion == "cat":
        return ConcatStates(noise_dim, text_dim, steps)
    if recurrence == "across_layers":
        return AcrossLayersStates(noise_dim, text_dim, hidden_size, steps)
    return PerLayerStates(noise_dim, text_dim, hidden_size, steps, batch_as_time=recurrence == "batch_as_time")
