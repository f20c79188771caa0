"""
Loads published models where this package does not exist, with transformers and timm, then with `load_guided`.

The environment's TASKS is a file that lists `repo`, `revision`, `subfolder`, `timm` (whether timm loads it too),
`expected` (a file); RESULTS is where what was found is written.
"""

import json
import os
import sys

import torch
from PIL import Image

sys.modules["hf_salguide"] = None  # importing it is an error


def by_transformers(task, expected):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    place = {"revision": task["revision"]} | ({"subfolder": task["subfolder"]} if task["subfolder"] else {})
    model = AutoModelForImageClassification.from_pretrained(task["repo"], **place).eval()
    processor = AutoImageProcessor.from_pretrained(task["repo"], **place)
    picture = Image.fromarray(expected["picture"].numpy())
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=expected["batch"]).logits
    found = {
        "transformers": torch.equal(logits, expected["logits"]),
        "processor": torch.equal(pixels, expected["pixels"]),
        "size": list(pixels.shape[-2:]),
        "names": list(model.config.id2label.values()),
        "guidance": model.config.saliency_guide["name"],
    }
    if not task["subfolder"]:
        answers = pipeline("image-classification", task["repo"], revision=task["revision"])(picture)
        scores = {row["label"]: row["score"] for row in answers}
        wanted = expected["seen"].softmax(-1)[0].tolist()
        found["pipeline"] = max(abs(scores[name] - value) for name, value in zip(found["names"], wanted, strict=True))
    return found


def by_timm(task, expected):
    import timm

    place = f"hf-hub:{task['repo']}" + (f"@{task['revision']}" if task["revision"] != "main" else "")
    model = timm.create_model(place, pretrained=True).eval()
    with torch.no_grad():
        logits = model(expected["batch"])
    told = timm.data.resolve_model_data_config(model)
    return {"timm": torch.equal(logits, expected["logits"]), "timm_size": list(told["input_size"][1:])}


def by_this_package(task, expected):
    from hf_salguide.hub import load_guided

    loaded = load_guided(task["repo"], revision=task["revision"])
    with torch.no_grad():
        logits = loaded.model(pixel_values=expected["batch"]).logits
    picture = Image.fromarray(expected["picture"].numpy())
    pixels = loaded.processor(picture, return_tensors="pt")["pixel_values"]
    return {
        "load_guided": torch.equal(logits, expected["logits"]),
        "load_guided_processor": torch.equal(pixels, expected["pixels"]),
        "load_guided_guidance": loaded.guidance["name"],
    }


def main():
    with open(os.environ["TASKS"]) as file:
        tasks = json.load(file)
    files = [torch.load(task["expected"], weights_only=True) for task in tasks]
    found = [by_transformers(task, expected) for task, expected in zip(tasks, files, strict=True)]
    for task, expected, row in zip(tasks, files, found, strict=True):
        row |= by_timm(task, expected) if task["timm"] else {}
    assert sys.modules.pop("hf_salguide") is None
    for task, expected, row in zip(tasks, files, found, strict=True):
        row |= {} if task["subfolder"] else by_this_package(task, expected)
    with open(os.environ["RESULTS"], "w") as file:
        json.dump(found, file)


main()
