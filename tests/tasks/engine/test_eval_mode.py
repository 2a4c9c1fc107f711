"""A look at a model leaves its mode alone."""

import pytest
import torch

from tasks.engine.eval_mode import eval_mode


def test_each_module_gets_its_own_mode_back() -> None:
    """Also after an error, a module in training is in training again, and a frozen one is not."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2).eval())
    with pytest.raises(RuntimeError, match="none in training"), eval_mode(model):
        raise RuntimeError(
            "some" if any(m.training for m in model.modules()) else "none in training"
        )
    assert [module.training for module in model.modules()] == [True, True, False]
