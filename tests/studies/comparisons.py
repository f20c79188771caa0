"""A comparison that takes seconds, for tests."""

from hf_salguide.studies.comparison.plan import Comparison

TRAINING = {
    "image_size": 32,
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "use_cpu": True,
}


def comparison(folder, output, **changes):
    given = {
        "output_dir": output,
        "data": {"path": str(folder)},
        "methods": ["cyborg", "masked_input"],
        "seeds": [0, 1],
        "backbones": {"test_resnet": {}},
        "inverted": ["cyborg"],
        "training": TRAINING,
        "name": "digits",
    }
    return Comparison(**{**given, **changes})


def in_this_process(work, tasks, jobs, done):
    """What stands in for `run_jobs`, to save the start of a process."""
    for task in tasks:
        done(task, work(task), "")
