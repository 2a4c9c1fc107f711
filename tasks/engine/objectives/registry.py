"""The objective of each task, imported only when it is used."""

from tasks.config import LearningObjective, PreferenceSettings, Task
from tasks.engine.objectives.objective import Objective


def objective_of(
    task: Task,
    learned: LearningObjective = LearningObjective.SFT,
    preferences: PreferenceSettings | None = None,
) -> Objective:
    """Return the objective of a task.

    Args:
        task: what the model is for.
        learned: what is learned; all but `sft` are for causal language models only.
        preferences: how the loss of a pair is computed, where pairs are learned.
    """
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
        case Task.CAUSAL_LM if learned is not LearningObjective.SFT:
            return _preferring(learned, preferences or PreferenceSettings())
        case Task.CAUSAL_LM:
            from tasks.engine.objectives.causal_lm import CausalLM

            return CausalLM()


def _preferring(learned: LearningObjective, preferences: PreferenceSettings) -> Objective:
    match learned:
        case LearningObjective.KTO:
            from tasks.engine.objectives.kto import KTO

            return KTO(preferences)
        case LearningObjective.ORPO:
            from tasks.engine.objectives.orpo import ORPO

            return ORPO(preferences)
        case LearningObjective.SIMPO:
            from tasks.engine.objectives.simpo import SimPO

            return SimPO(preferences)
        case _:
            from tasks.engine.objectives.dpo import DPO

            return DPO(preferences)
