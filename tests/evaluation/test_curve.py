"""The curve draws what the rows hold, and what they lack is left out."""

from tests.messages import mentions

from efficientnetv2.evaluation.plots import constant_hyperparameters, draw_training_curves


def _panels(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def _train(epoch, **values):
    return {"kind": "train", "epoch": epoch, "loss": 1.0 - epoch / 10, **values}


def test_a_panel_for_the_loss_one_for_validation_and_one_per_setting_that_changed():
    rows = [_train(e, image_size=128 + 32 * e, dropout=0.2, randaugment=5.0 + e, mixup_alpha=0.0) for e in range(3)]
    rows.append({"kind": "val", "epoch": 3, "top1": 0.5, "macro_f1": 0.4})
    figure = draw_training_curves(rows)
    assert _panels(figure) == ["loss", "validation", "image px", "RandAugment"]
    drawn = [[line.get_xydata().tolist() for line in ax.lines] for ax in figure.axes]
    assert drawn == [
        [[[0, 1.0], [1, 0.9], [2, 0.8]]],
        [[[3, 0.5]], [[3, 0.4]]],
        [[[0, 128], [1, 160], [2, 192]]],
        [[[0, 5], [1, 6], [2, 7]]],
    ]
    assert constant_hyperparameters(rows) == {"dropout": 0.2}


def test_nothing_to_draw():
    assert draw_training_curves([]) is None
    assert draw_training_curves([{"kind": "train", "epoch": 0.0}]) is None


def test_missing_and_broken_values_are_left_out():
    rows = [_train(0, lr=None, drop_path=None), *(_train(epoch, lr=float("nan")) for epoch in (1, 2))]
    rows.append({"kind": "train", "epoch": 3.0, "loss": float("inf")})
    rows.append({"kind": "val", "epoch": 2.0, "top1": None, "macro_f1": 0.4})
    assert _panels(draw_training_curves(rows)) == ["loss", "validation"]


def test_the_panel_of_validation_says_of_which_images_its_points_are():
    def title(*points):
        rows = [{"kind": kind, "epoch": e, "top1": 0.5, "num_images": n} for e, (kind, n) in enumerate(points)]
        return _panels(draw_training_curves(rows))[0]

    assert mentions(title(("val", 512), ("val", 512), ("val", 689)), "512", "689", "val")
    assert title(("val", 300), ("val", 300)) == "validation (val, 300 images)"
    with_minival = title(("minival", 90), ("minival", 90), ("val", 689))
    assert "minival, 90 images" in with_minival
    assert "val, 689 images" in with_minival
