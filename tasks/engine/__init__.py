"""All that touches torch, transformers, peft and datasets; imports neither Prefect nor MLflow."""

import os

# Read when torch loads its thread pool. By default idle threads spin for the next piece of work,
# and on cores that something else wants, too, each of thousands of products a step then waits for
# a thread that is not running: training was three to six times slower beside one busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
