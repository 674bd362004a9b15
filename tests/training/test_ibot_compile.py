"""Training a compiled student."""

import pytest
import torch

from tests.testing.tiny_training import tiny_trainer


class Batches:
    """Batches of random views with 5, 7, 2 and 9 masked patches."""

    def __init__(self):
        self.generator, self.numbers = torch.Generator().manual_seed(0), iter((5, 7, 2, 9))

    def __call__(self, samples):
        mask = torch.zeros(2 * 2 * 9, dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=self.generator)[: next(self.numbers)]] = True
        return {
            "pixel_values": torch.randn(2, 2, 3, 24, 24, generator=self.generator),
            "local_pixel_values": torch.randn(2, 2, 3, 16, 16, generator=self.generator),
            "bool_masked_pos": mask.view(2, 2, 9),
            "mask_indices": mask.nonzero().squeeze(1),
        }


def losses(folder, **options) -> list[float]:
    config = {"image_size": 24, "patch_size": 8, "out_dim": 12}
    options |= {"per_device_train_batch_size": 2, "learning_rate": 0.01, "freeze_last_layer": 1}
    trainer = tiny_trainer(folder, [{}] * 8, config, collator=Batches(), **options)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.slow
def test_one_compilation_for_any_number_of_masked_patches(tmp_path):
    expected = losses(tmp_path)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    actual = losses(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    assert actual == pytest.approx(expected, abs=1e-5) and len(actual) == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
