"""adapterflow's engine with the training in as many processes as the job's `launch` says."""

from benchmarks.harness.messages import Job, Outcome
from benchmarks.harness.watching import now
from benchmarks.tools.ours import begun, noting, sections
from tasks import engine
from tasks.config import LaunchSettings, TrainingSettings
from tasks.launching import is_alone, train_in_processes


def run(job: Job) -> Outcome:
    """Train; the adapter is the folder of the trained weights, and stays as it is."""
    model, injected, data = begun(job)
    training = TrainingSettings.model_validate(sections(job)["training"])
    launch = LaunchSettings.model_validate(job.options["launch"])
    checkpoints, outcome = job.folder / "checkpoints", Outcome(training_began=now())
    note = noting(outcome)
    if is_alone(launch):
        trained = engine.train_adapter(model, injected, data.record, training, checkpoints, note)
    else:
        del model  # as in step 4, which holds none meanwhile
        result = train_in_processes(injected, data.record, training, checkpoints, launch, note)
        trained, outcome.peaks_mb = result.trained, [one / 1e6 for one in result.peak_memory_bytes]
    outcome.seconds_training = now() - outcome.training_began
    outcome.adapter = trained.weights.path
    return outcome
