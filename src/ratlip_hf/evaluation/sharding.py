"""Which pictures a process looks at, and how what the processes saw comes together, in the order of the pictures.
Owns the cut into blocks; a single process is the case of one block."""

from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

Part = TypeVar("Part")


def share(count: int, state: PartialState) -> range:
    """The block of `count` pictures that belongs to this process; blocks follow each other in the order of ranks."""
    rank, world = state.process_index, state.num_processes
    return range(rank * count // world, (rank + 1) * count // world)


def gathered(part: Part, state: PartialState) -> list[Part]:
    """The parts of all processes in the order of ranks, on every process. Parts are pickled, tensors on the CPU."""
    return [part] if state.num_processes == 1 else gather_object([part])
