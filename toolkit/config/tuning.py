"""Settings of fine-tuning: which parameters are trained, and at which rate. Imports no torch."""

from pydantic import Field

from toolkit.config.base import Section


class Tuning(Section):
    """Fine-tuning"""

    freeze: bool = Field(False, description="train only the classifier; all else keeps the weights that were loaded")
    unfreeze_from: str | None = Field(
        None,
        description="train only what comes from this stage of the model on, and the classifier; a name of timm's "
        "features or a child, such as layer4, blocks.6 or stages.3 (unset: all)",
    )
    freeze_bn: bool = Field(
        False, description="keep statistics and affine parameters of every BatchNorm as loaded, also those of a scale"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor on the learning rate from each layer to the one before it, above 0 to 1, e.g. 0.75; layers "
        "as timm groups them (unset: all alike)",
    )
    backbone_lr_scale: float | None = Field(
        None, gt=0, description="factor on the learning rate of all but the classifier, above 0, e.g. 0.1 (unset: 1)"
    )
