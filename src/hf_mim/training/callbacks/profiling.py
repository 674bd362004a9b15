"""Profile where a training step spends its time: `--profile`."""

from pathlib import Path

from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from ...utils.files import replaced_file
from .throughput import Throughput


# Before the recorded steps, there are steps in which caches fill and kernels are selected or compiled, and a step in
# which the profiler warms up.
WAIT, WARM_UP, ACTIVE = 3, 1, 3
ROWS = 25


class ProfileCallback(TrainerCallback):
    """
    Records `ACTIVE` steps of every process after the first `WAIT + WARM_UP` steps of `train`.

    It writes into `output_dir/profile/`:

    - `steps-5-to-7-rank-0.json`, a trace for https://ui.perfetto.dev or chrome://tracing, with the ranges `training
      step 5` and so on, `wait for data`, `targets` and `student`,
    - `steps-5-to-7-rank-0.txt`, the operators that took the most time.

    If the run ends earlier, the trace contains the steps recorded so far. If there are none, this is reported.

    Args:
        throughput (`Throughput`): Clock to pause while files are written.
    """

    def __init__(self, throughput: Throughput):
        self._throughput = throughput
        self._profiler: profile | None = None
        self._range: record_function | None = None
        self._recorded: list[int] = []

    def on_train_begin(self, args, state, control, **kwargs):
        activities = [ProfilerActivity.CPU]
        if args.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._recorded = []
        self._profiler = profile(
            activities=activities, schedule=schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1)
        )
        self._profiler.start()

    def on_step_begin(self, args, state, control, **kwargs):
        if self._profiler is None:
            return
        if self._profiler.current_action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE):
            self._recorded.append(state.global_step + 1)
        self._range = record_function(f"training step {state.global_step + 1}")
        self._range.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if self._profiler is None:
            return
        if self._range is not None:
            self._range.__exit__(None, None, None)
        if len(self._recorded) == ACTIVE:
            with self._throughput.paused():
                self._finish(args, state)
        else:
            self._profiler.step()

    def on_train_end(self, args, state, control, **kwargs):
        if self._profiler is not None:
            self._finish(args, state)

    def _finish(self, args: TrainingArguments, state: TrainerState) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        if not self._recorded:
            if state.is_world_process_zero:
                print(f"--profile: no trace, because the first {WAIT + WARM_UP} steps are not recorded")
            return
        name = f"steps-{self._recorded[0]}-to-{self._recorded[-1]}-rank-{args.process_index}"
        folder = Path(str(args.output_dir)) / "profile"
        with replaced_file(folder / f"{name}.json") as file:
            profiler.export_chrome_trace(str(file))
        order = "self_cpu_time_total" if args.device.type == "cpu" else "self_device_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        with replaced_file(folder / f"{name}.txt") as file:
            file.write_text(table + "\n", encoding="utf-8")
        if state.is_world_process_zero:
            few = "" if len(self._recorded) == ACTIVE else f", because the run was too short for {ACTIVE}"
            print(f"--profile: trace of {len(self._recorded)} steps{few}, and the top operators: {folder / name}.*")
