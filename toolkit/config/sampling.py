"""Settings of sampling: how often an image comes in an epoch. Imports no torch."""

from pydantic import Field

from toolkit.config.base import Section
from toolkit.config.choices import SamplingKind


class Sampling(Section):
    """Sampling"""

    sampling: SamplingKind = Field(
        "plain",
        description="plain: every image once an epoch; balanced: as many images, those of rare classes several times, "
        "augmented differently, and those of common ones in turn; of several labels the rarest counts",
    )
    sampling_power: float = Field(
        1.0,
        gt=0,
        le=1,
        description="power of --sampling balanced, above 0 to 1; 1: every class comes equally often; 0.5: by the root "
        "of its images",
    )
