"""Where the network of a run comes from: timm, or the user's own code. All that depends on it is asked here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from toolkit.config.settings import OF_TIMM, Settings
from toolkit.config.tables import import_named, named
from toolkit.models.create import construct, create, own_size, pretrained, registered_by
from toolkit.models.feature_maps import advice
from toolkit.models.hub import resolved_arch
from toolkit.models.initial_weights import StoredWeights
from toolkit.models.inspection import PADS, ModelPlan, plan_model
from toolkit.models.multiview import MultiView
from toolkit.models.own_source import OwnModelSource, model_name
from toolkit.models.portable import PortableModel, TimmModel
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError

Model = nn.Module | Callable[..., nn.Module] | str  # an object, a function that makes one, or module:function

# Constructor arguments that only training needs, or that name the source of pretrained weights.
DROPPED = ("drop_rate", "drop_path_rate", "pretrained_cfg", "pretrained_cfg_overlay")


class ModelSource(Protocol):
    """A source of the network: checks it at every size, creates it with random weights, describes it."""

    @property
    def name(self) -> str:
        """How the plan of a run names the model."""

    def recorded(self) -> dict[str, Any]:
        """The settings that name this source in config.yaml."""

    def own_size(self) -> int:
        """The model's default image size, px; raises InputError if it has none."""

    def plan(
        self,
        settings: Settings,
        classes: int,
        sizes: Sequence[int],
        policy: NormPolicy,
        *,
        micro_batch: int | None = None,
        trained: Sequence[int] = (),
        further: Sequence[int] = (),
    ) -> ModelPlan:
        """Check the model at `sizes`, for which it is made, and at `further` ones, px; raises InputError.

        `micro_batch`: images per process and forward pass in training; None if the model is not to be trained.
        `trained`: those of `sizes` at which it is trained.
        """

    def create(self, settings: Settings, plan: ModelPlan, policy: NormPolicy) -> MultiView:
        """The model on the CPU with its initial weights, which depend only on the seed."""

    def network(self, settings: Settings, plan: ModelPlan) -> nn.Module:
        """The plain network, for the names and shapes of its tensors only."""

    def pretrained(self, settings: Settings, plan: ModelPlan) -> StoredWeights:
        """The weights of `--pretrained`; raises InputError if they cannot be loaded."""

    def notes(self, plan: ModelPlan) -> list[str]:
        """Further lines for the plan of a run."""

    def portable(self, network: nn.Module, plan: ModelPlan, size: int, classes: Sequence[str]) -> PortableModel:
        """The model for export at `size` px; `network`: the run's, without `MultiView`."""


@dataclass(frozen=True)
class TimmSource:
    """An architecture of timm's registry, which the user's own modules may have joined."""

    arch: str
    size: int | None = None  # default size, px, of a model that is not timm's own

    @property
    def name(self) -> str:
        return self.arch

    def recorded(self) -> dict[str, Any]:
        return {}

    def own_size(self) -> int:
        return self.size or own_size(self.arch)

    def plan(
        self,
        settings: Settings,
        classes: int,
        sizes: Sequence[int],
        policy: NormPolicy,
        *,
        micro_batch: int | None = None,
        trained: Sequence[int] = (),
        further: Sequence[int] = (),
    ) -> ModelPlan:
        plan = plan_model(settings, classes, sizes, micro_batch or 2, trained)
        if {*further} <= {*sizes}:
            return replace(plan, small_maps=advice(settings, plan, trained))
        # Further sizes must not change the size of position tables.
        made = {name: value for name, value in plan.arguments.items() if name == "img_size"}
        fixed = settings.model_copy(update={"model_kwargs": {**settings.model_kwargs, **made}})
        return plan_model(fixed, classes, sorted({*sizes, *further}), micro_batch or 2, trained)

    def create(self, settings: Settings, plan: ModelPlan, policy: NormPolicy) -> MultiView:
        return create(settings, plan.arguments, policy)

    def network(self, settings: Settings, plan: ModelPlan) -> nn.Module:
        return construct(settings, plan.arguments)

    def pretrained(self, settings: Settings, plan: ModelPlan) -> StoredWeights:
        return pretrained(settings, plan.arguments)

    def notes(self, plan: ModelPlan) -> list[str]:
        padded = [f"padding   {self.arch} pads images to a multiple of its patch"] if PADS in plan.arguments else []
        return [*padded, *([plan.small_maps] if plan.small_maps else [])]

    def portable(self, network: nn.Module, plan: ModelPlan, size: int, classes: Sequence[str]) -> PortableModel:
        return TimmModel(
            arguments={name: value for name, value in plan.arguments.items() if name not in DROPPED},
            size=size,
            mean=plan.mean,
            std=plan.std,
            classes=tuple(classes),
            arch=self.arch,
            known=dict(getattr(network, "pretrained_cfg", None) or {}),
            module=registered_by(self.arch),
        )


def make_source(settings: Settings, model: Model | None = None) -> ModelSource:
    """The source that the settings name, or the one of `model`, which replaces it.

    A module:function in `model` is imported; one of the settings only if its module was imported already, since they
    may come from a run. Raises InputError.
    """
    text = settings.model_from
    if model is None and text is None:
        resolved = resolved_arch(settings)
        about = resolved.model_kwargs.get("pretrained_cfg")  # timm also takes a tag
        size = about.get("input_size") if isinstance(about, Mapping) else None
        return TimmSource(resolved.arch, size[-1] if size else None)
    if model is None and ":" not in str(text) and " " in str(text):
        raise InputError(f"{text}: pass it again as model=..., or give --model-from with a function that makes it")
    if isinstance(model, str):
        source = OwnModelSource(model, import_named("--model-from", model))
    elif model is None:
        source = OwnModelSource(str(text), named("--model-from", str(text)))
    else:
        source = OwnModelSource(model_name(model), model)
    ignored = [name for name in OF_TIMM if name in settings.model_fields_set]
    if ignored:
        flag = "--" + ignored[0].replace("_", "-")
        raise InputError(
            f"{flag} would be ignored: the model is {source.name}, and the flag is one for timm's; drop it"
        )
    return source
