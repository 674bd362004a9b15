"""
`hf-mim pretrain` with FSDP 2 on CPU processes.

accelerate leaves FSDP out on the CPU, without a word. Told otherwise, it shards there as it does on GPUs.
"""

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


plain_init = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    import hf_mim_cli as cli

    sys.exit(cli.main(["pretrain", *sys.argv[1:]]))
