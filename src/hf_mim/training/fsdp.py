"""Models under FSDP 2: sharded like the student, and whole again where they are evaluated or saved."""

import copy
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method


Model = TypeVar("Model", bound=nn.Module)


def prepare_fsdp(accelerator: Accelerator):
    """
    Leave half precision to autocast, as without FSDP: targets, losses and gradients stay in float32.

    Raises:
        ValueError: For FSDP 1, or checkpoints that are not sharded.
    """
    if not accelerator.is_fsdp2:
        raise ValueError("the target network cannot be sharded by FSDP 1: use FSDP 2 or DDP")
    plugin = accelerator.state.fsdp_plugin
    if "SHARDED" not in str(plugin.state_dict_type):
        raise ValueError("FSDP checkpoints must be sharded: set fsdp_state_dict_type to SHARDED_STATE_DICT")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


class WholeCopies:
    """
    Makes whole copies of a sharded module.

    Args:
        module (`nn.Module`): The module before it is sharded, which changes its class.
    """

    def __init__(self, module: nn.Module):
        self._skeleton = copy.deepcopy(module).to("meta")

    def of(self, sharded: Model, device: torch.device) -> Model:
        """Return a copy with all parameters on every process, on `device`. All processes must call this."""
        whole = copy.deepcopy(self._skeleton)
        whole.load_state_dict(whole_state_dict(sharded), assign=True)
        return whole.to(device)  # type: ignore[return-value]  # sharding changed the class, not the type


def shard(module: Model, accelerator: Accelerator, method: str) -> Model:
    """
    Shard a module that computes targets over the processes, with the plan that the accelerator has for the student.

    Args:
        module (`nn.Module`): Whole, and the same in every process.
        accelerator (`Accelerator`): Set up for FSDP 2.
        method (`str`): Method of `module` that computes targets. Parameters are gathered around it.
    """
    module = fsdp2_prepare_model(accelerator, module)
    register_fsdp_forward_method(module, method)
    return module


def whole_state_dict(module: nn.Module) -> dict[str, Any]:
    """Parameters and buffers of a module, sharded or not, whole on every process; all of them must call this."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def load_whole_state_dict(module: nn.Module, state_dict: dict[str, Any]):
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
    example: dict[str, torch.Tensor] = next((state for state in map(optimizer.state.get, parameters) if state), {})
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
