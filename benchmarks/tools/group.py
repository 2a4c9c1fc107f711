"""adapterflow's engine with the training in as many processes as the job's `launch` says."""

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.watching import now
from benchmarks.tools.ours import sections
from tasks import engine
from tasks.config import (
    BaseModelSettings,
    DataSettings,
    LaunchSettings,
    LoraSettings,
    TrainingSettings,
)
from tasks.engine.training import TrainingProgress
from tasks.launching import is_alone, train_in_processes


def run(job: Job) -> Outcome:
    """Train; the adapter is the folder of the trained weights, and stays as it is."""
    settings = sections(job)
    base_settings = BaseModelSettings.model_validate(settings["base_model"])
    given = DataSettings.model_validate(settings["data"])
    data = engine.prepare_data(given, base_settings, job.seed, job.folder / "tokens").record
    model, base = engine.load_base(base_settings)
    lora = engine.configure_lora(LoraSettings.model_validate(settings["lora"]), base, job.seed)
    injected = engine.inject_adapter(model, lora, job.folder / "initial" / "default.safetensors")
    training = TrainingSettings.model_validate(settings["training"])
    launch = LaunchSettings.model_validate(job.options["launch"])
    checkpoints = job.folder / "checkpoints"
    outcome = Outcome(training_began=now())

    def note(progress: TrainingProgress) -> None:
        if "loss" in progress.metrics:
            outcome.losses.append(progress.metrics["loss"])
        elif not progress.metrics:
            outcome.step_ends.append(now())

    if is_alone(launch):
        trained = engine.train_adapter(model, injected, data, training, checkpoints, note)
    else:
        del model  # as in step 4, which holds none meanwhile
        result = train_in_processes(injected, data, training, checkpoints, launch, note)
        trained, outcome.peaks_mb = result.trained, [one / 1e6 for one in result.peak_memory_bytes]
    outcome.seconds_training = now() - outcome.training_began
    outcome.adapter = trained.weights.path
    return outcome
