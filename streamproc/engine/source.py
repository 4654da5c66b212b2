"""Where a model comes from: a built-in one, a local folder, or a hub name -> a local folder.

A hub name is looked up among the downloads first; only then is the hub asked, once, so that a machine without a
network is told so in seconds.
"""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from streamproc.engine import random_model
from streamproc.errors import Unavailable, Usage, one_line
from streamproc.market.rendering import FILE, MARKET_MODEL, market_model

TIMEOUT_S = 10
TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", FILE]


def model_folder(model: str) -> Path:
    """The folder that holds this model's files; downloads a hub model that is not here yet.

    Raises Usage where there is no such model, Unavailable where the hub cannot be reached.
    """
    if model == random_model.NAME:
        return random_model.folder()
    if model == MARKET_MODEL:
        return market_model()
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Usage(f"engine.model: {model} has no config.json; give the folder that holds the model")
        return path
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists():
        raise Usage(f"engine.model: {model} is not a folder; give a model's folder, a hub name such as "
                    f"Qwen/Qwen3-0.6B, or {MARKET_MODEL}")
    return _from_hub(model)


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise Usage(f"engine.model: {name!r} is neither a folder nor a hub name") from None
    except LocalEntryNotFoundError:
        return _download(name)


def _download(name: str) -> Path:
    try:
        files = [file.rfilename for file in HfApi().model_info(name, timeout=TIMEOUT_S).siblings or []]
        weights = "*.safetensors" if any(file.endswith(".safetensors") for file in files) else "*.bin"
        return Path(snapshot_download(name, allow_patterns=[*TEXTS, weights], ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise Usage(f"engine.model: {name} is gated; accept its terms there and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise Usage(f"engine.model: {name} is neither a folder nor a model on the hub; check the spelling") from None
    except Exception as problem:
        raise Unavailable(f"engine.model: {name} is not a folder, not downloaded yet, and the hub cannot be reached "
                          f"({one_line(problem)}); download it elsewhere and give its folder, "
                          f"or use {MARKET_MODEL}") from problem
