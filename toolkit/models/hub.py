"""Models that timm names `hf-hub:NAME` or `local-dir:FOLDER`: their config.json says which architecture they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download

from toolkit.config.settings import Settings
from toolkit.config.yaml_values import read_yaml, yaml_mapping
from toolkit.models.initial_weights import names_in_order
from toolkit.system.errors import InputError, first_line
from toolkit.system.run_lock import run_of
from toolkit.system.stores import query

HUB, LOCAL = "hf-hub", "local-dir"
# Of its pretrained_cfg: preprocessing, and the names of its layers; the rest is of its training.
KEPT = ("input_size", "fixed_input_size", "mean", "std", "num_classes", "first_conv", "classifier", "pool_size")
KEPT_OF_HUB = ("hf_hub_filename", "custom_load")
# Arguments that the run itself decides.
DECIDED = ("num_classes", "img_size", "dynamic_img_size", "drop_rate", "drop_path_rate")


def resolved_arch(settings: Settings) -> Settings:
    """Settings that need no hub or folder but for the weights: timm's architecture with the arguments of config.json.

    With `--pretrained`, a folder becomes `--weights`. Raises InputError if the model cannot be found.
    """
    try:
        source, name = timm.models.parse_model_name(settings.arch)
    except ValueError as error:
        raise InputError(f"--arch {settings.arch}: {error}") from None
    if source is None or settings.model_from is not None:
        return settings
    try:
        found = _of_config(source, name, _read(source, name), settings.pretrained)
    except InputError:
        found = _recorded(settings, source, name)
        if not found:
            raise
    kwargs = {**found.pop("model_kwargs"), **settings.model_kwargs}
    return settings.model_copy(update={**found, "model_kwargs": kwargs})


def label_names(name: str) -> tuple[str, ...] | None:
    """Class names of a model of the hub, in the order of its head; None if they are unknown."""
    try:
        config = _read(HUB, name)
    except InputError:  # weights alone
        return None
    names = config.get("label_names") or config.get("pretrained_cfg", config).get("label_names") or config.get("labels")
    return names_in_order(names) if names else None


def _of_config(source: str, name: str, config: Mapping[str, Any], pretrained: bool) -> dict[str, Any]:
    """The settings that config.json stands for."""
    about = config.get("pretrained_cfg", config)  # earlier models have one flat object
    kept = {key: about[key] for key in (*KEPT, *KEPT_OF_HUB * (source == HUB)) if about.get(key) is not None}
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key not in DECIDED}
    if arguments.get("in_chans") == 3:
        del arguments["in_chans"]
    if config.get("num_classes") is not None:
        kept["num_classes"] = config["num_classes"]
    if source == HUB:
        kept["hf_hub_id"] = name
    local = {"weights": Path(name), "pretrained": False} if source == LOCAL and pretrained else {}
    return {"arch": config["architecture"], "model_kwargs": {**arguments, "pretrained_cfg": kept}, **local}


def _read(source: str, name: str) -> dict[str, Any]:
    """The contents of config.json; raises InputError if it is not there, or names no architecture."""
    flag = f"--arch {source}:{name}"
    try:
        repository, _, revision = name.partition("@")
        local = source == LOCAL
        path = (
            Path(name, "config.json")
            if local
            else hf_hub_download(repository, "config.json", revision=revision or None)
        )
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
            raise ValueError("it names no timm architecture; for its weights alone: --weights with the folder")
    except Exception as error:  # the hub's client raises many types of exceptions
        raise InputError(f"{flag}: config.json cannot be read: {first_line(error)}") from None
    return config


def _config_of_run(settings: Settings) -> dict[str, Any]:
    """config.yaml of the run of --output-dir or --resume; empty if there is none."""
    if (url := settings.run_url) is not None:
        try:
            return yaml_mapping(query(f"{url}/config.yaml", lambda there, path: there.cat_file(path)).decode())
        except FileNotFoundError:
            return {}
    place = settings.output_dir or run_of(Path(settings.resume))
    path = Path(place) / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def _recorded(settings: Settings, source: str, name: str) -> dict[str, Any]:
    """What the run of --output-dir or --resume has resolved the same name to; empty if there is none."""
    config = _config_of_run(settings)
    kwargs = config.get("model_kwargs") or {}
    if source == HUB:
        same = (kwargs.get("pretrained_cfg") or {}).get("hf_hub_id") == name
        return {"arch": config["arch"], "model_kwargs": kwargs} if same else {}
    if Path(config.get("weights") or "") != Path(name):
        return {}
    return {"arch": config["arch"], "model_kwargs": kwargs, "weights": Path(name), "pretrained": False}
