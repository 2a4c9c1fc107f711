"""The objectives: causal LM, seq2seq, sequence and token classification."""

from tasks.engine.objectives.class_counts import count_classes, count_entities, entity_f1
from tasks.engine.objectives.entities import names_entities
from tasks.engine.objectives.generation import matches
from tasks.engine.objectives.objective import Objective
from tasks.engine.objectives.registry import objective_of

__all__ = [
    "Objective",
    "count_classes",
    "count_entities",
    "entity_f1",
    "matches",
    "names_entities",
    "objective_of",
]
