"""Mistakes in the words of a command, of every verb: one line each, before anything is read or loaded."""

import pytest

from tests.testing.mistakes import refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # verbs
        ("", "which verb? pretrain, evaluate"),
        ("pretain", "unknown verb 'pretain', did you mean 'pretrain'?"),
        ("evaluate", "evaluate what? knn (see hf-mim evaluate knn --help)"),
        ("evaluate kn", "unknown evaluation 'kn', did you mean 'knn'?"),
        ("analyze", "analyze what? codes, distance, svd"),
        ("analyze codez", "unknown analysis 'codez', did you mean 'codes'?"),
        # operands
        ("evaluate knn", "the following arguments are required: MODEL, DATASET"),
        ("evaluate knn model", "the following arguments are required: DATASET"),
        ("evaluate knn model data more", "unexpected argument 'more'"),
        ("analyze codes tokenizer", "the following arguments are required: IMAGES, --output_dir"),
        ("analyze distance model images", "the following arguments are required: --output_dir"),
        ("convert", "SOURCE, OUTPUT_DIR"),
        ("export model", "the following arguments are required: OUT"),
        ("publish folder", "the following arguments are required: ORG/NAME"),
        ("check-data", "the following arguments are required: SOURCE"),
        ("env more", "env takes no arguments, got 'more'"),
        ("env --json", "env takes no arguments, got '--json'"),
        # names of options
        ("evaluate knn model data --ks 5", "unknown option '--ks', did you mean '--k'?"),
        ("evaluate knn model data --batch-size 5", "unknown option '--batch-size', did you mean '--batch_size'?"),
        ("analyze svd model images --output_dir out --topk 3", "unknown option '--topk', did you mean '--top_k'?"),
        ("analyze distance model images --output_dir out --max_image 3", "did you mean '--max_images'?"),
        ("convert a b --familly ibot", "unknown option '--familly', did you mean '--family'?"),
        ("export a b --onxx", "unknown option '--onxx', did you mean '--onnx'?"),
        ("publish a b/c --dryrun", "unknown option '--dryrun', did you mean '--dry_run'?"),
        ("check-data photo-tiles --jsn", "unknown option '--jsn', did you mean '--json'?"),
        # values of options
        ("evaluate knn model data --k", "argument --k: expected at least one argument"),
        ("evaluate knn model data --k 5 0", "argument --k: must be at least 1, got 0"),
        ("evaluate knn model data --k ten", "argument --k: must be a whole number, got 'ten'"),
        ("evaluate knn model data --k 2.5", "argument --k: must be a whole number, got '2.5'"),
        ("evaluate knn model data --temperature nan", "argument --temperature: must be a finite number, got nan"),
        ("evaluate knn model data --temperature inf", "argument --temperature: must be a finite number, got inf"),
        ("evaluate knn model data --temperature 0", "argument --temperature: must be above 0, got 0"),
        ("evaluate knn model data --temperature warm", "argument --temperature: must be a number, got 'warm'"),
        ("evaluate knn model data --batch_size -1", "argument --batch_size: must be at least 1, got -1"),
        ("evaluate knn model data --num_workers 1000000", "argument --num_workers: must be at most 1024"),
        ("evaluate knn model data --max_test_samples 0", "argument --max_test_samples: must be at least 1, got 0"),
        ("evaluate knn model data --pooling max", "argument --pooling: invalid choice: 'max'"),
        ("analyze svd model images --output_dir out --top_k 0", "argument --top_k: must be at least 1, got 0"),
        ("analyze codes t images --output_dir out --num_codes 0", "argument --num_codes: must be at least 1, got 0"),
        ("analyze distance m images --output_dir out --batch_size 0", "argument --batch_size: must be at least 1"),
        ("convert a b --num_attention_heads 0", "argument --num_attention_heads: must be at least 1, got 0"),
        ("convert a b --family mae", "argument --family: invalid choice: 'mae'"),
        ("export a b --architecture swin", "argument --architecture: invalid choice: 'swin'"),
        ("check-data photo-tiles --num_workers -1", "argument --num_workers: must be at least 0, got -1"),
        # pretrain
        ("pretrain ibot-vitz16", "unknown recipe 'ibot-vitz16', did you mean 'ibot-vit"),
        ("pretrain recipes/own.yaml", "recipes/own.yaml: no such recipe file"),
        ("pretrain quickstart --stepz 4", "unknown option '--stepz', did you mean '--"),
        ("pretrain quickstart --model_type mae", "model_type must be one of ibot"),
        ("pretrain quickstart --learning_rate nan", "learning-rate: must be a finite number, got nan"),
        ("pretrain quickstart --weight_decay inf", "weight-decay: must be a finite number, got inf"),
        ("pretrain quickstart --global_crops_scale 0.4 nan", "global-crops-scale: must be a finite number, got nan"),
        ("pretrain quickstart --eval_strategy often", "eval-strategy: invalid choice: 'often' (choose from"),
        ("pretrain quickstart --config_overrides hidden_size=[&a,*a]", "hidden_size must have a YAML value"),
        ("pretrain --train_dir images", "give the folder for the results: --output_dir FOLDER"),
        ("pretrain quickstart --train_dir images --dataset_name photo-tiles", "either --train_dir FOLDER or"),
        ("pretrain quickstart --train_dir nowhere", "train_dir nowhere does not exist"),
        ("pretrain dbot-vitb16 --train_dir images --num_train_epochs 3.5", "already give the 1600 epochs of the run"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *words.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_size: wide", "image_size must be a list, each entry a whole number or null, got 'wide'"),
        ("eval_strategy: sometimes", "eval_strategy must be one of no, steps, epoch, got 'sometimes'"),
        ("eval_strategy: false", "eval_strategy must be one of no, steps, epoch, got False"),
        ("max_steps: 4.5", "max_steps must be a whole number, got 4.5"),
        ("learning_rate: .nan", "learning_rate must be a number or null, got nan"),
        ("seed: 1\nseed: 2", "not valid YAML: 'seed' is given twice"),
        ("optim_args: &a x\nrun_name: *a", "aliases (*a) are not allowed"),
        ("lr_scheduler_kwargs: " + 2000 * "[", "nested too deeply"),
        ("lerning_rate: 1", "unknown option 'lerning_rate', did you mean 'learning_rate'?"),
        ("just words", "a recipe is a mapping"),
    ],
)
def test_recipes(capsys, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    assert message in refusal(capsys, "pretrain", tmp_path / "own.yaml", "--train_dir", tmp_path)
