"""Packages that are not installed, answered with the line that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from puzzle_search.errors import MissingDependencyError

# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "aiconfigurator_core": "aiconfigurator-core",
    "flashinfer": "flashinfer-python",
    "lm_eval": "lm-eval",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}
EXTRAS = {
    "aiconfigurator_core": "silicon",
    "datasets": "data",
    "pyarrow": "data",
    "lm_eval": "eval",
    "flashinfer": "flashinfer",
    "gguf": "gguf",
    "matplotlib": "plots",
    "plotly": "report",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "ray": "ray",
    "tensorboard": "track",
    "trackio": "track",
    "wandb": "track",
}
# What turns models into children, and comes with the package unless it was installed without.
_WHOLE = {"pynvml", "safetensors", "torch", "transformers"}


@contextmanager
def installed() -> Iterator[None]:
    """Import inside of this what may be absent.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error) from error


def missing(error: ModuleNotFoundError) -> MissingDependencyError:
    """What to tell the user of a module that was not found.

    Raises:
        ModuleNotFoundError: it is a module of this package: not the user's to install.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", "puzzle_search"):
        raise error
    distribution = DISTRIBUTIONS.get(module, module)
    if module in EXTRAS:
        remedy = f"pip install 'puzzle-search[{EXTRAS[module]}]'"
    elif module in _WHOLE:
        remedy = "pip install puzzle-search"
    else:
        remedy = f"pip install {distribution}"
    return MissingDependencyError(f"{distribution} is not installed", remedy=remedy)
