"""Train on several devices, each of which keeps a part of the weights, gradients and moments (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.utils import _sync_module_states
from torch.optim import Optimizer

from mamba_apps.errors import UserError
from mamba_apps.training.sharding import Shards, shard_state, whole_state
from mamba_kernels import backend

_SYNC_BYTES = 250 * 2**20


class FullyShardedStrategy(DDPStrategy):
    """Lightning's strategy for several processes, with the task's parameters sharded in place of copied.

    Lightning's own strategies for this write checkpoints by themselves. Here they are the same files as without shards,
    gathered in the first process: whole or absent, checksummed, and usable with any other strategy. When training has
    ended the task is an ordinary module again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shards: Shards | None = None
        self._statistics: list[Tensor] = []

    def configure_ddp(self) -> None:
        """Shard the task.

        Raises:
            UserError: The CPU's kernels do not go with shards, or two modules share a parameter.
        """
        task = cast(LightningModule, self.lightning_module)
        named = dict(task.named_parameters(remove_duplicate=False))
        if shared := named.keys() - dict(task.named_parameters()).keys():
            found = f"the strategy fsdp cannot shard {min(shared)}, which two modules share"
            raise UserError(found, 'use strategy "ddp"')
        if self.root_device.type == "cpu" and backend.choose("fsdp", self.root_device, None, has_triton=False) == "cpu":
            raise UserError(
                "the strategy fsdp frees weights that the CPU kernels hold on to",
                f'use strategy "ddp", or set {backend.VARIABLE}=reference',
            )
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        everybody = cast(distributed.ProcessGroup, distributed.group.WORLD)
        _sync_module_states(task, everybody, _SYNC_BYTES, 0, params_and_buffers_to_ignore=set())
        self._statistics = _running_statistics(task)
        self._shards = Shards(task, mesh)

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimisers, of the shards.

        Raises:
            UserError: One reads more of a parameter than its shard.
        """
        super().setup_optimizers(trainer)
        for optimiser in self.optimizers:
            if not type(optimiser).__module__.startswith("torch.optim"):
                name = type(optimiser).__name__
                raise UserError(f"{name} does not train shards of parameters", 'use AdamW, or strategy "ddp"')

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the step with the running statistics of the first process, as DDP does."""
        for statistic in self._statistics:
            distributed.broadcast(statistic, 0)
        return super().training_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the task's whole state in the first process; all call it."""
        state = super().lightning_module_state_dict()
        return whole_state(state, self.is_global_zero) if self._shards is not None else state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return an optimiser's whole state in the first process; all call it."""
        return whole_state(super().optimizer_state(optimizer), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each optimiser's shards from a checkpoint, which all processes have read."""
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        states = [shard_state(optimiser, state) for optimiser, state in pairs]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def teardown(self) -> None:
        """Make the task an ordinary module again, unless training failed."""
        if self._shards is not None:
            shards, self._shards = self._shards, None
            self.optimizers = []  # they are of the shards
            task = self.lightning_module
            # after an error the other processes may not be there any more
            if task is not None and task.trainer.state.status is not TrainerStatus.INTERRUPTED:
                shards.undo()
        super().teardown()


def _running_statistics(task: nn.Module) -> list[Tensor]:
    """Return what batch norms have seen, which each process sees another part of."""
    norms = [module for module in task.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers()]
