"""The metrics as modules of the `evaluate` library, which gathers predictions over batches and processes."""

from pathlib import Path


def list_modules() -> list[str]:
    """
    Names of the `evaluate` modules, for [`module_path`].

    Returns:
        `list[str]`, sorted.
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*/*.py") if path.stem == path.parent.name)


def module_path(name: str) -> str:
    """
    Folder of a module, to be loaded without a connection.

    Example:

    ```python
    >>> import evaluate
    >>> from hf_salguide.metrics import module_path

    >>> metric = evaluate.load(module_path("alignment"))
    >>> metric.add_batch(predictions=maps, references=saliency)
    >>> metric.compute()
    ```

    Over several processes, give each `num_process`, its `process_id`, one `experiment_id` and a `cache_dir` that all
    of them see: `compute()` returns the result in process 0 and `None` in the others.

    Args:
        name (`str`): one of [`list_modules`].

    Returns:
        `str`: the folder's path.

    Raises:
        ImportError: without the `evaluate` library.
        ValueError: for an unknown `name`.
    """
    try:
        import evaluate  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'The metric modules need the evaluate library: pip install "hf_salguide[evaluate]". The functions of '
            "hf_salguide.metrics work without it."
        ) from error
    if name not in list_modules():
        raise ValueError(f'name="{name}" is no metric module; there are {", ".join(list_modules())}.')
    return str(Path(__file__).parent / name)
