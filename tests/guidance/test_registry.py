"""The registry, its errors, and the schedules."""

import pytest
import torch

from hf_salguide import Guidance, get_guidance, list_guidance, register_guidance
from hf_salguide.guidance import guidance_class, guidance_options, registry, schedule_factor


def test_none_and_cyborg_are_known():
    assert "cyborg" in list_guidance()
    assert "none" not in list_guidance()
    assert get_guidance("none").needs_annotation is False


@pytest.mark.parametrize("name", [*list_guidance(), "none"])
def test_every_method_describes_itself(name):
    cls = guidance_class(name)
    assert cls.name == name
    for flag in ("reconstructed", "transforms_inputs", "needs_annotation", "draws", "needs_maps"):
        assert isinstance(getattr(cls, flag), bool)
    assert cls.paper
    assert cls.formula
    assert cls.__doc__
    assert cls.default_weight >= 0
    assert repr(get_guidance(name)).startswith(cls.__name__)


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(ValueError, match='guidance="cybrog" is not known; did you mean "cyborg"'):
        get_guidance("cybrog")


def test_an_unknown_option_gets_the_nearest_known_one():
    with pytest.raises(ValueError, match='"cam_clas" is not an option of guidance="cyborg"; did you mean "cam_class"'):
        get_guidance("cyborg", cam_clas="true")


def test_an_unknown_value_gets_the_choices():
    with pytest.raises(ValueError, match="cam_class='first' is not known; choose one of 'true', 'predicted'"):
        get_guidance("cyborg", cam_class="first")


def test_an_option_of_a_method_without_options():
    with pytest.raises(ValueError, match='"depth" is not an option of guidance="none"; it takes none'):
        get_guidance("none", depth=1)


def test_users_register_their_own(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_guidance
    class Mine(Guidance):
        """Mine."""

        name = "mine"
        paper = "mine"
        formula = "0"

        def __init__(self, strength: float = 2.0):
            self.strength = strength

        def terms(self, batch):
            return self.strength * batch.logits.sum(dim=1)

    assert "mine" in list_guidance()
    assert guidance_options(Mine) == {"strength": 2.0}
    assert get_guidance("mine", strength=3.0).strength == 3.0


def test_registering_twice_or_nonsense_is_refused():
    class Other(Guidance):
        name = "cyborg"

        def terms(self, batch):
            return torch.zeros(1)

    class Nameless(Other):
        name = None

    Cyborg = type("Cyborg", (Other,), {"__module__": "theirs", "__qualname__": "Cyborg"})
    with pytest.raises(ValueError, match='guidance="cyborg" is taken by Cyborg'):
        register_guidance(Cyborg)
    with pytest.raises(ValueError, match='guidance="cyborg" is taken by Cyborg'):
        register_guidance(Other)
    with pytest.raises(TypeError, match="Nameless.name=None"):
        register_guidance(Nameless)
    with pytest.raises(TypeError, match="takes a subclass of Guidance"):
        register_guidance(torch.nn.Linear)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [1, 1, 1]),
        ("linear_increase", [0, 0.5, 1]),
        ("linear_decrease", [1, 0.5, 0]),
        ("cosine_decrease", [1, 0.5, 0]),
        ("warmup:0.25", [0, 1, 1]),
        ("warmup:1", [0, 0.5, 1]),
        ("after:0.5", [0, 1, 1]),
        ("after:0.6", [0, 0, 1]),
    ],
)
def test_schedules(schedule, values):
    assert [schedule_factor(schedule, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(values)


@pytest.mark.parametrize("schedule", ["cosine", "warmup", "warmup:0", "after:1.5", "after:soon"])
def test_schedules_that_are_refused(schedule):
    with pytest.raises(ValueError, match=f'guidance_schedule="{schedule}"'):
        schedule_factor(schedule, 0.5)
