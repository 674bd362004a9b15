"""What the progress bar shows."""

from types import SimpleNamespace

from hf_mim.training.callbacks.progress import MIMProgressCallback


class Bar:
    """Stands in for tqdm and notes what it is told."""

    def __init__(self):
        self.lines, self.postfix = [], None

    def write(self, line):
        self.lines.append(line)

    def set_postfix_str(self, text):
        self.postfix = text


def test_loss_parts_speed_and_accuracies():
    callback, bar = MIMProgressCallback(), Bar()
    state = SimpleNamespace(is_world_process_zero=True, global_step=40)
    logs = {"loss": 3.0, "loss_cls": 1.25, "loss_patch": 1.75, "learning_rate": 0.1, "rankme": 5.0}
    callback.on_log(None, state, None, logs)  # no bar before the training begins
    callback.training_bar = bar
    callback.on_log(None, state, None, logs)
    assert bar.postfix == "loss 3.000, loss_cls 1.250, loss_patch 1.750" and bar.lines == []
    callback.on_log(None, state, None, {"loss": 3.0, "images_per_second": 121.7, "data_wait": 0.034})
    assert bar.postfix == "loss 3.000, 122 img/s, data 3 %" and bar.lines == []
    callback.on_log(None, state, None, {"eval_knn_10_top1": 71.26, "eval_knn_10_top5": 90.0, "eval_knn_20_top1": 70.0})
    assert bar.lines == ["step     40: 10-NN 71.3 %, 20-NN 70.0 %"]
    tokenizer = {"eval_codebook_usage": 0.634, "eval_perplexity": 100.4, "eval_loss_feature": 0.1239}
    callback.on_log(None, state, None, tokenizer)
    assert bar.lines.pop() == "step     40: 63.4 % of the codes in use, perplexity 100, loss_feature 0.124"
    callback.on_log(None, SimpleNamespace(is_world_process_zero=False), None, {"eval_knn_10_top1": 1.0})
    callback.on_log(None, state, None, {"train_runtime": 1.0})
    assert len(bar.lines) == 1
