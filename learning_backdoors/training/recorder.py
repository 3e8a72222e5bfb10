"""What the main process of local training records: metrics, the progress bar, and the step-0 checkpoint."""

from transformers import TrainerCallback

from learning_backdoors.files import command_line
from learning_backdoors.models import checkpoints
from learning_backdoors.training.metrics import MetricsLog


class Recorder(TrainerCallback):
    """Saves step 0, writes each step's metrics into the run's log, and shows a progress bar."""

    FIELDS = ("loss", "learning_rate", "grad_norm")

    def __init__(self, log: MetricsLog):
        self.log, self.run, self.bar = log, log.run, None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 0:
            temporary = checkpoints.begin_checkpoint(self.run.folder, 0)
            checkpoints.save_adapter(model, temporary)
            checkpoints.end_checkpoint(temporary, self.run.folder, 0)
        self.bar = command_line.progress_bar("training", self.run.total_steps, state.global_step, "step")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" not in logs:
            return
        step = state.global_step
        self.log.record(step, {name: logs[name] for name in self.FIELDS if name in logs})
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()
