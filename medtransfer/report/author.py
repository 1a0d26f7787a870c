"""What the guidelines ask of the author: fields of the ``author`` section of a config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Author(BaseModel):
    """What only the author can say; the report marks what is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    intended_use: str = ""
    index_test: str = ""
    reference_standard: str = ""
    eligibility: str = ""
    ethics: str = ""
    funding: str = ""
    abstract: str = ""
    acquisition: str = ""
    adverse_events: str = ""
    alternatives: str = ""
    annotation: str = ""
    availability: str = ""
    background: str = ""
    blinding: str = ""
    data_source: str = ""
    deidentification: str = ""
    design: str = ""
    fairness: str = ""
    imbalance: str = ""
    implications: str = ""
    inequalities: str = ""
    interests: str = ""
    interpretation: str = ""
    involvement: str = ""
    limitations: str = ""
    missing_data: str = ""
    objectives: str = ""
    poor_input: str = ""
    protocol: str = ""
    reference_rationale: str = ""
    registration: str = ""
    sample_size: str = ""
    setting: str = ""
    time_between: str = ""
    treatments: str = ""
    updating: str = ""
    users: str = ""
    variability: str = ""
    developer: str = ""
    contact: str = ""
    maintenance: str = ""
