"""The target network under FSDP2: sharded like the student, and whole again where it is evaluated or saved."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


class ShardedTarget:
    """
    Shards `target` over the processes, with the plan that the `accelerator` has for the student.

    Args:
        accelerator (`Accelerator`): Set up for FSDP2.
        target (`nn.Module`): Whole, and the same in every process.
        method (`str`): The method of `target` that computes targets; parameters are gathered around it.
    """

    def __init__(self, accelerator: Accelerator, target: nn.Module, method: str):
        # Sharding changes the class of the module.
        self._skeleton = copy.deepcopy(target).to("meta")
        self._device = accelerator.device
        self.module = fsdp2_prepare_model(accelerator, target)
        register_fsdp_forward_method(self.module, method)

    def whole(self) -> nn.Module:
        """A copy with all parameters on every process; all of them must call this."""
        whole = copy.deepcopy(self._skeleton)
        whole.load_state_dict(whole_state_dict(self.module), assign=True)
        return whole.to(self._device).requires_grad_(False)


def whole_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a module, sharded or not, whole on every process; all of them must call this."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def load_whole_state_dict(module: nn.Module, state_dict: dict[str, torch.Tensor]):
    """Copy what `whole_state_dict` gave, or alike, into a module, sharded or not; all processes must call this."""
    set_model_state_dict(module, state_dict, options=StateDictOptions(full_state_dict=True))


def reshard(*modules: nn.Module):
    """Give back what a forward pass has gathered: `torch.distributed.fsdp` keeps the root's parameters whole."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def complete_optimizer_state(optimizer: torch.optim.Optimizer):
    """
    Give parameters that never had a gradient the zero state with which they would start.

    A sharded checkpoint cannot be loaded when the state of a parameter is missing in it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    example = next((state for state in map(optimizer.state.get, parameters) if state), {})
    for parameter in parameters:
        if not optimizer.state.get(parameter):
            optimizer.state[parameter] = {
                name: torch.zeros_like(parameter if value.ndim else value) for name, value in example.items()
            }


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor, which may be nothing."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def as_whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is spread over the processes as a plain one."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
