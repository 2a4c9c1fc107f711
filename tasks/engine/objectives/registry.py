"""The objective of each task, imported only when it is used."""

from tasks.config import Task
from tasks.engine.objectives.objective import Objective


def objective_of(task: Task) -> Objective:
    """Return the objective of a task."""
    match task:
        case Task.SEQUENCE_CLASSIFICATION:
            from tasks.engine.objectives.sequence_classification import SequenceClassification

            return SequenceClassification()
        case Task.TOKEN_CLASSIFICATION:
            from tasks.engine.objectives.token_classification import TokenClassification

            return TokenClassification()
        case Task.SEQ2SEQ:
            from tasks.engine.objectives.seq2seq import Seq2Seq

            return Seq2Seq()
        case Task.CAUSAL_LM:
            from tasks.engine.objectives.causal_lm import CausalLM

            return CausalLM()
