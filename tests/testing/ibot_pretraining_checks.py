"""What the pre-training models of iBOT have in common, whatever their backbone."""

import pytest
import torch

from tests.testing.model_checks import assert_same, gradients_of


class IBotPreTrainingChecks:
    """Beside a subclass of `ModelChecks`: views `[3, 2, ...]`, with heads as in `head_variants`."""

    head_variants: tuple[dict, ...]

    def training_inputs(self, config, masked: bool = True, local: bool = True):
        generator = torch.Generator().manual_seed(3)
        inputs = self.inputs(config)
        if not masked:
            inputs["bool_masked_pos"].zero_()
        if not local:
            del inputs["local_pixel_values"]
        num_masked = int(inputs["bool_masked_pos"].sum())
        patch_dim = config.out_dim if config.shared_head else config.patch_out_dim
        cls = torch.randn(3, 2, config.out_dim, generator=generator).softmax(-1)
        patch = torch.randn(num_masked, patch_dim, generator=generator).softmax(-1)
        return inputs | {"target_cls": cls, "target_patch": patch}

    @pytest.mark.parametrize("masked, local", [(True, False), (False, True), (False, False)])
    def test_no_parameter_is_left_out(self, masked, local):
        """Distributed training waits forever for a parameter without a gradient."""
        for overrides in self.head_variants:
            model = self.make_model(**overrides).train()
            loss, gradients = gradients_of(model, self.training_inputs(model.config, masked, local))
            assert loss.isfinite()
            assert all(gradient is not None for gradient in gradients.values())

    def test_loss_is_the_sum_of_its_weighted_parts(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        output = model(**inputs)
        assert output.loss == output.loss_cls + output.loss_patch
        weighted = self.make_model(cls_loss_weight=0.5, patch_loss_weight=3)(**inputs)
        torch.testing.assert_close(weighted.loss_cls, 0.5 * output.loss_cls)
        torch.testing.assert_close(weighted.loss_patch, 3 * output.loss_patch)

    @torch.no_grad()
    def test_given_mask_indices_change_nothing(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        indices = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        assert_same(model(**inputs, mask_indices=indices), model(**inputs))

    @torch.no_grad()
    def test_parts_come_from_the_encoder_and_the_head(self):
        """Against the same model taken apart, view by view, with the head run on every token."""
        for overrides in self.variants:
            model = self.make_model(**overrides)
            inputs = self.inputs(model.config)
            output = model(**inputs)
            patches = []
            for view in range(2):
                mask = inputs["bool_masked_pos"][:, view]
                tokens = model.ibot(inputs["pixel_values"][:, view], mask).last_hidden_state
                embedded = model.head.embed(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
                assert_same(output.cls_logits[:, view], model.head.project_cls(embedded[:, 0]), atol=1e-5)
                patches.append(model.head.project_patch(embedded[:, 1:]))
                tokens = model.ibot(inputs["local_pixel_values"][:, view]).last_hidden_state
                logits = model.head.project_cls(model.head.embed(tokens[:, 0]))
                assert_same(output.local_cls_logits[:, view], logits, atol=1e-5)
            assert_same(output.patch_logits, torch.stack(patches, 1)[inputs["bool_masked_pos"]], atol=1e-5)

    @torch.no_grad()
    def test_teaching_against_logits_of_every_patch(self):
        for overrides in self.head_variants:
            model = self.make_model(**overrides).train()
            inputs = self.inputs(model.config)
            indices = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
            taught = model.teach(inputs["pixel_values"], indices, mean_patch_logit=True)
            tokens = model.ibot(inputs["pixel_values"].flatten(0, 1)).last_hidden_state
            embedded = model.head.embed(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            patch_logits = model.head.project_patch(embedded[:, 1:])
            assert_same(taught.cls_tokens, tokens[:, 0].unflatten(0, (3, 2)))
            assert_same(taught.cls_logits, model.head.project_cls(embedded[:, 0]).unflatten(0, (3, 2)), atol=1e-5)
            assert_same(taught.patch_logits, patch_logits.flatten(0, 1)[indices], atol=1e-5)
            assert_same(taught.mean_patch_logit, patch_logits.mean((0, 1)), atol=1e-5)

    def test_teaching_without_the_mean(self):
        model = self.make_model()
        views = self.inputs(model.config)["pixel_values"]
        for indices in (torch.tensor([0, 5, 53]), torch.tensor([], dtype=torch.int64)):
            taught = model.teach(views, indices)
            full = model.teach(views, indices, mean_patch_logit=True)
            assert taught.mean_patch_logit is None and not taught.cls_logits.requires_grad
            assert_same(taught.cls_logits, full.cls_logits, atol=1e-5)
            assert_same(taught.patch_logits, full.patch_logits, atol=1e-5)
