"""What of a saliency map travels to the step, and that methods do not notice."""

import pytest
import torch
from support import Rows, build, make_batch, make_trainer

from hf_salguide import SaliencyCollator, get_guidance, list_guidance, register_guidance
from hf_salguide.guidance import base, guidance_class, registry
from hf_salguide.maps import reduced_saliency
from hf_salguide.steps import carried_size

SIZE = (128, 192)  # cells of 32 × 32 pixels on the grid (4, 6) of the ResNet
MAP_METHODS = ["cam_entropy", "cyborg", "divisive_complement", "divisive_difference", "divisive_divergence", "energy"]
ANNOTATED = (True, True, False, True, False, True)


def soft_batch(seed=0):
    """Smooth maps and masks with edges, none of them along the cells."""
    batch = make_batch(SIZE, 6, seed=seed, annotated=ANNOTATED)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(6, 1, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[:, 0]
    smooth[1] = (smooth[1] > 0.5).float()
    batch["saliency"] = (255 * smooth * torch.tensor(ANNOTATED)[:, None, None]).round().to(torch.uint8)
    return batch


def trainer_of(folder, batch=None, **arguments):
    rows = Rows(soft_batch() if batch is None else batch)
    arguments = {"per_device_train_batch_size": 3, "image_size": list(SIZE), **arguments}
    return make_trainer(build("resnet"), folder, train_dataset=rows, eval_dataset=rows, **arguments)


# ---- Which size ----


@pytest.mark.parametrize(
    ("grid", "picture", "expected"),
    [
        ((7, 7), (224, 224), (28, 28)),
        ((14, 14), (224, 224), (56, 56)),
        ((56, 56), (224, 224), (224, 224)),
        ((4, 6), (128, 192), (16, 24)),
        ((10, 10), (300, 300), (50, 50)),  # 30 pixels a cell: four parts do not fit, five do
        ((10, 7), (299, 224), (299, 28)),  # no whole pixels a cell along the first side
        ((112, 112), (224, 224), (224, 224)),
        (None, (224, 224), (224, 224)),
    ],
)
def test_the_size_that_travels(grid, picture, expected):
    assert carried_size([get_guidance("cyborg"), get_guidance("energy")], grid, picture) == expected


def test_the_methods_that_read_pixels_say_so():
    at_grid = {name for name in list_guidance() if get_guidance(name).saliency_at == "grid"}
    assert at_grid == {*MAP_METHODS, "map_guidance"}
    assert get_guidance("cyborg", resize="bilinear").saliency_at == "picture"
    assert carried_size([get_guidance("cyborg"), get_guidance("actdiff")], (4, 6), SIZE) == SIZE


@pytest.mark.parametrize(
    ("parent", "overridden"),
    [
        ("cyborg", "terms"),
        ("cyborg", "class_weights"),
        ("map_guidance", "read_map"),
        ("map_guidance", "read_target"),
        ("cam_entropy", "terms"),
        ("cam_entropy", "read_map"),
    ],
)
def test_a_method_of_the_users_own_gets_every_pixel(monkeypatch, parent, overridden):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    kind = guidance_class(parent)

    def own(self, batch, *args):
        return getattr(kind, overridden)(self, batch, *args)

    register_guidance(type("Border", (kind,), {"name": "border", overridden: own}))
    assert get_guidance(parent).saliency_at == "grid"
    assert get_guidance("border").saliency_at == "picture"


# ---- The reduction ----


def test_area_means_of_area_means_are_area_means():
    saliency = soft_batch()["saliency"]
    grid = (4, 6)
    whole = torch.nn.functional.adaptive_avg_pool2d(saliency.double(), grid)
    parts = torch.nn.functional.adaptive_avg_pool2d(reduced_saliency(saliency, (16, 24)).double(), grid)
    difference = (whole - parts).abs()
    assert 0 < difference.max() <= 0.5  # of 255: that of the bytes
    assert difference.mean() < 0.1  # of the mean of sixteen of them


def test_empty_stays_empty_full_stays_full_and_nothing_else_becomes_either():
    size = (4, 6)
    for value in (0, 255):
        plain = torch.full(SIZE, value, dtype=torch.uint8)
        assert reduced_saliency(plain[None], size).unique().tolist() == [value]
        for other in (1, 254, 255 - value):
            one_pixel = plain.clone()
            one_pixel[3, 5] = other
            reduced = reduced_saliency(one_pixel[None], size)
            assert reduced.amax() > 0
            assert reduced.amin() < 255
    with pytest.raises(ValueError, match="divides"):
        reduced_saliency(torch.zeros(1, 10, 10, dtype=torch.uint8), (3, 5))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        reduced_saliency(torch.zeros(1, 10, 10), (5, 5))


def test_a_collator_reduces_pictures_of_the_size_it_is_told():
    rows = [Rows(soft_batch())[row] for row in range(6)]
    whole, reduced = SaliencyCollator()(rows), SaliencyCollator({SIZE: (16, 24)})(rows)
    assert whole.keys() == reduced.keys()
    assert reduced["saliency"].shape == (6, 16, 24)
    assert reduced["saliency"].dtype == torch.uint8
    assert torch.equal(reduced["saliency"], reduced_saliency(whole["saliency"], (16, 24)))
    assert all(torch.equal(whole[key], reduced[key]) for key in whole if key != "saliency")
    assert SaliencyCollator({(64, 64): (8, 8)})(rows)["saliency"].shape == (6, *SIZE)
    bare = SaliencyCollator({SIZE: (16, 24)})([{**row, "saliency": None} for row in rows])
    assert bare["saliency"].shape == (6, 16, 24)


# ---- In the trainer ----


@pytest.mark.parametrize("control", [{}, {"invert_saliency": True}], ids=str)
@pytest.mark.parametrize("method", MAP_METHODS)
def test_loss_and_gradient_are_those_of_every_pixel(tmp_path, method, control):
    trainer = trainer_of(tmp_path, guidance=method, per_device_train_batch_size=6, **control)
    (reduced,) = trainer.get_train_dataloader()
    assert reduced["saliency"].shape == (6, 16, 24)
    order = [
        next(row for row in range(6) if torch.equal(trainer.train_dataset[row]["pixel_values"], pixels))
        for pixels in reduced["pixel_values"]
    ]
    whole = trainer.data_collator([trainer.train_dataset[row] for row in order])
    assert whole["saliency"].shape == (6, *SIZE)
    found = []
    for batch in (whole, reduced):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model.train(), batch)
        loss.backward()
        gradient = torch.cat(
            [weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None]
        )
        found.append((loss.item(), gradient))
    (loss, gradient), (other, changed) = found
    # Half a step of the bytes is 1/510, about 2e-3.
    assert other == pytest.approx(loss, rel=2e-4)
    assert (changed - gradient).norm() < 2e-3 * gradient.norm()


def test_training_ends_where_it_does_with_every_pixel(tmp_path):
    weights = []
    for arguments in ({}, {"data_collator": SaliencyCollator()}):
        torch.manual_seed(0)
        trainer = trainer_of(
            tmp_path, guidance=["cyborg", "energy"], max_steps=4, optim="sgd", learning_rate=0.05, **arguments
        )
        trainer.train()
        weights.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
    start = torch.cat([value.flatten() for value in build("resnet").state_dict().values()])
    moved = (weights[1] - start).norm()
    assert 0 < (weights[0] - weights[1]).norm() < 1e-3 * moved


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"guidance": "cyborg"}, (16, 24)),
        ({"guidance": "cyborg", "guidance_options": {"resize": "bilinear"}}, SIZE),
        ({"guidance": ["cyborg", "shuffled_input"]}, SIZE),
        ({"guidance": "rrr"}, SIZE),
        ({"guidance": "cyborg", "random_saliency": True}, SIZE),
        ({"guidance": "none"}, SIZE),
        ({"guidance": "cyborg", "data_collator": SaliencyCollator()}, SIZE),  # the user's own is left alone
    ],
    ids=["grid", "bilinear", "another in pixels", "gradient", "random", "none", "own collator"],
)
def test_what_travels_in_training_and_in_evaluation(tmp_path, arguments, shape):
    trainer = trainer_of(tmp_path, **arguments)
    given = trainer.data_collator
    assert next(iter(trainer.get_train_dataloader()))["saliency"].shape == (3, *shape)
    assert next(iter(trainer.get_eval_dataloader()))["saliency"].shape[1:] == SIZE
    assert trainer.data_collator is given


def test_a_collator_that_reduces_of_itself_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, guidance="cyborg", data_collator=SaliencyCollator({SIZE: (32, 48)}))
    with pytest.raises(ValueError, match="bring both to the same size"):
        trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))


# ---- Targets ----


def test_targets_are_made_once_a_micro_batch(tmp_path, monkeypatch):
    made = []
    original = base.saliency_target
    monkeypatch.setattr(base, "saliency_target", lambda *given: made.append(given[1:]) or original(*given))
    options = {"divisive_difference": {"resize": "bilinear"}}
    methods = ["cyborg", "divisive_complement", "divisive_difference", "energy"]
    trainer = trainer_of(tmp_path, guidance=methods, guidance_options=options)
    for _ in range(2):
        trainer.compute_loss(trainer.model, soft_batch())
        assert sorted(made) == [((4, 6), "area"), ((4, 6), "bilinear")]
        made.clear()
