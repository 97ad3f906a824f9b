"""Settings of what is measured. Imports no torch."""

from pydantic import Field

from toolkit.config.base import Folder, Section

COST_MATRIX = (
    "CSV file of what it costs to take an image of one class (row) for another (column), 0 or more, with the names of "
    "the classes in its first row and column, in any order; adds expected_cost and bayes_cost"
)


class Metrics(Section):
    """Metrics"""

    cost_matrix: Folder | None = Field(None, description=f"{COST_MATRIX} (unset: none)")
    cost_matrix_sha256: str | None = Field(
        None, description="SHA-256 that the file of --cost-matrix must have, as config.yaml records it (unset: any)"
    )
