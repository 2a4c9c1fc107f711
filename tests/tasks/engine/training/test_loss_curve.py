"""The loss curve is a picture, whatever losses there are."""

import warnings
from pathlib import Path

import pytest
from matplotlib.image import imread

from tasks.engine.training.loss_curve import draw_loss_curve
from tasks.records import LossPoint

FALLING = tuple(LossPoint(step=step, train_loss=2 / step) for step in range(1, 20))


@pytest.mark.parametrize(
    "points",
    [
        (*FALLING, LossPoint(step=19, eval_loss=0.2)),
        (LossPoint(step=1, train_loss=2.0),),
        (LossPoint(step=1, eval_loss=2.0),),
        (LossPoint(step=1, train_loss=0.5), LossPoint(step=2, train_loss=0.0, eval_loss=0.0)),
        (LossPoint(step=1, train_loss=0.0),),
        (),
    ],
    ids=["both", "one point", "held out only", "falls to zero", "all zero", "no point"],
)
def test_curve_is_a_png(tmp_path: Path, points: tuple[LossPoint, ...]) -> None:
    """Any losses, zero on the logarithmic axis included, give a picture and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = draw_loss_curve(points, tmp_path / "loss.png")

    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = imread(file).shape
    assert width > height > 300


def test_losses_are_in_the_picture(tmp_path: Path) -> None:
    """Other losses give another picture, equal ones the same."""
    rising = tuple(LossPoint(step=p.step, train_loss=p.step / 10) for p in FALLING)

    first, again, other = (
        draw_loss_curve(points, tmp_path / f"{name}.png").read_bytes()
        for name, points in (("first", FALLING), ("again", FALLING), ("other", rising))
    )

    assert first == again != other
