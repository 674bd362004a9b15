"""Cards under the name of a repository, and the card of a full model beside its encoder's."""

import yaml
from huggingface_hub import ModelCard

from hf_mim import Beitv2Config, DBotConfig, IBotConfig, IBotSwinConfig
from hf_mim.hub.run_card import build_pretraining_card, rename_card


CARD = """---
base_model: org/before
license: mit
tags:
- hf_mim
- ibot
model-index:
- name: run-3
  results:
  - task:
      type: image-classification
    dataset:
      type: cifar10
      name: cifar10
    metrics:
    - type: accuracy
      value: 71.5
---

# run-3

An encoder.

## Use

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("run-3")
other = AutoModel.from_pretrained("run-3b")
```

`hf-mim pretrain RECIPE --tokenizer_name_or_path run-3`

## Training

`hf-mim pretrain ibot-vits16 --output_dir run-3`

## Limits

Not for decisions about people.

## Citation

A paper.
"""


def test_title_model_name_and_use_follow_the_repository():
    renamed = rename_card(CARD, "org/ibot-vits16")
    assert "\n# ibot-vits16\n" in renamed and "# run-3\n" not in renamed
    assert 'from_pretrained("org/ibot-vits16")' in renamed and 'from_pretrained("run-3b")' in renamed
    assert "--tokenizer_name_or_path org/ibot-vits16`" in renamed
    assert "--output_dir run-3`" in renamed
    data = ModelCard(renamed).data
    assert data.model_name == "ibot-vits16"
    assert [result.metric_value for result in data.eval_results] == [71.5]
    assert (data.license, data.base_model) == ("mit", "org/before")
    # Once more, from the name that it has by then.
    again = rename_card(renamed, "someone/else")
    assert 'from_pretrained("someone/else")' in again and "org/ibot" not in again
    assert rename_card(again, "someone/else") == again


def test_a_card_of_other_make_stays_what_it_is():
    assert rename_card("# Mine\n\nJust text.\n", "org/name").endswith("# name\n\nJust text.\n")
    assert "\nJust text." in rename_card("Just text.\n", "org/name")


def pretraining_card(config, with_code=False):
    return build_pretraining_card("org/name-pretrain", "org/name", config, CARD, with_code)


def test_card_of_a_full_model():
    card = pretraining_card(IBotConfig())
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "hf_mim" and "pipeline_tag" not in header
    assert (header["license"], header["base_model"], header["tags"]) == ("mit", "org/before", ["hf_mim", "ibot"])
    assert "\n# name-pretrain\n" in card and "[org/name](https://huggingface.co/org/name)" in card
    assert "import hf_mim\n" in card and "trust_remote_code" not in card
    assert 'AutoModelForPreTraining.from_pretrained("org/name-pretrain")' in card
    assert "8,192 prototypes, and in `teacher/`" in card and "--model_type ibot --model_name_or_path org/name" in card
    assert "## Limits\n\nNot for decisions about people.\n" in card and card.endswith("## Citation\n\nA paper.\n")
    assert "## Training" not in card and "\n\n\n" not in card


def test_card_of_a_full_model_with_a_swin_transformer():
    assert "--model_type ibot_swin --model_name_or_path org/name-pretrain" in pretraining_card(IBotSwinConfig())


def test_card_of_a_full_model_with_its_code():
    card = pretraining_card(DBotConfig(), with_code=True)
    assert "library_name: transformers" in card and "\nimport hf_mim" not in card
    assert '.from_pretrained("org/name-pretrain", trust_remote_code=True)' in card
    assert "decoder that predicts features of 768 numbers" in card and "--model_type dbot " in card


def test_card_of_a_full_model_says_what_its_training_needs():
    card = pretraining_card(Beitv2Config())
    assert "8,192 codes" in card and "--tokenizer_name_or_path TOKENIZER" in card
    card = pretraining_card(Beitv2Config(head_layers=0, regression_loss="negcosine", target_dim=512))
    assert "--model_type dbot_symmetric" in card and "--teacher_model_name_or_path TEACHER" in card
    assert "features of 512 numbers" in card
