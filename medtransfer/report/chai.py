"""The Applied Model Card of the Coalition for Health AI as XML, by its schema version 0.1.

Elements, their order and the namespace are those of the coalition's ``AppliedModelCard`` schema, v0.1; all
its fields are text. What the run knows is filled from it, what only the author can say from ``author`` in the
config, and what nobody said reads *Not stated*, so that no field looks answered that is not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from medtransfer.metrics.intervals import Estimate

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

NAMESPACE = "https://mc.chai.org/v0.1/schema.xsd"
UNSAID = "Not stated"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Card = dict[str, "str | Card"]


def model_card_xml(result: Evaluation) -> str:
    """The card as XML text."""
    return xml_text(card(result))


def xml_text(fields: Card) -> str:
    """A card's fields as XML text."""
    root = ElementTree.Element("AppliedModelCard", {"xmlns": NAMESPACE})
    _add(root, fields)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def card(result: Evaluation) -> Card:
    """The fields by element name, in the order of the schema."""
    record: dict[str, Any] = dict(result.record)
    author = {k: str(v) for k, v in dict(record.get("author") or {}).items() if v}
    model = {k: v for k, v in dict(record.get("model") or {}).items() if v}
    p, n = result.predictions, result.counts

    def said(key: str) -> str:
        return author.get(key, UNSAID)

    tested = f"{p.part}: {n['cases']} cases of {n['patients']} patients"
    tested += ". Synthetic images: the numbers say nothing about any patient." if record.get("synthetic") else "."
    process = f"Point estimates with 95 % intervals; {result.bootstrap} resamples of patients, seed {result.seed}."
    flags = [f"{c.name}: {c.text}" for c in result.checks if c.status in ("serious", "caution")]
    groups = [f"{s.grouping} {s.level}: {_text(s.auroc)}" for s in result.subgroups]
    network = ", ".join(str(model[k]) for k in ("backbone", "weights", "licence") if k in model) or UNSAID
    threshold = "" if result.threshold is None else f" Threshold rule: {result.threshold.rule}."
    return {
        "BasicInfo": {
            "ModelName": str(record.get("title") or UNSAID),
            "ModelDeveloper": said("developer"),
            "DeveloperContact": said("contact"),
        },
        "ReleaseInfo": {
            "ReleaseStage": "Research evaluation; not a medical device",
            "ReleaseDate": UNSAID,
            "ReleaseVersion": str(dict(record.get("hashes") or {}).get("checkpoint") or model.get("sha256") or UNSAID),
            "GlobalAvailability": said("availability"),
        },
        "ModelSummary": {
            "Summary": f"{said('index_test')} Outputs: {', '.join(p.classes)}. Tested on {tested}",
            "Keywords": {},
        },
        "UsesAndDirections": {
            "IntendedUseAndWorkflow": said("intended_use"),
            "PrimaryIntendedUsers": said("users"),
            "HowToUse": f"Input: {model.get('input', UNSAID)}.{threshold}",
            "TargetedPatientPopulation": said("eligibility"),
            "CautionedOutOfScopeSettings": "Decisions about patients; scanners, populations and findings unlike "
            f"those tested. {author.get('poor_input', '')}".strip(),
        },
        "Warnings": {
            "KnownRisksAndLimitations": " ".join([said("limitations"), *flags]),
            "KnownBiasesOrEthicalConsiderations": said("inequalities"),
            "ClinicalRiskLevel": UNSAID,
        },
        "TrustIngredients": {
            "AISystemFacts": {
                "OutcomesAndOutputs": ", ".join(p.classes),
                "ModelType": network,
                "FoundationModels": str(model.get("source") or UNSAID),
                "InputDataSource": said("data_source"),
                "OutputAndInputDataTypes": f"Input: {model.get('input', UNSAID)}. Output: one value of each of "
                f"{', '.join(p.classes)}.",
                "DevelopmentDataCharacterization": said("setting"),
                "BiasMitigationApproaches": said("fairness"),
                "OngoingMaintenance": said("maintenance"),
            },
            "TransparencyInformation": {
                "FundingSource": said("funding"),
                "ThirdPartyInformation": said("interests"),
                "StakeholdersConsulted": said("involvement"),
            },
        },
        "KeyMetrics": {
            "UsefulnessUsabilityEfficacy": _metric(
                result.primary, _all(result), said("interpretation"), p.part, tested, process
            ),
            "FairnessEquity": _metric(
                "the same in all subgroups", "; ".join(groups) or "No subgroups were examined.",
                "Intervals of small groups are wide: overlap is not proof of fairness.", p.part, tested, process,
            ),
            "SafetyReliability": _metric(
                "no red flag", "; ".join(flags) or "No check that was made found anything.",
                "Leakage, shortcuts, sample size, calibration and operating point were looked at.", p.part, tested,
                process,
            ),
        },
        "Resources": {
            "EvaluationReferences": "report.html, metrics.json and predictions.csv beside this card",
            "ClinicalTrial": said("registration"),
            "PeerReviewedPublications": said("protocol"),
            "PatientConsentOrDisclosure": said("ethics"),
            "StakeholdersConsulted": said("involvement"),
        },
        "Bibliography": "",
    }  # fmt: skip


def _metric(goal: str, found: str, reading: str, kind: str, data: str, process: str) -> Card:
    return {
        "MetricGoal": goal,
        "Result": found,
        "Interpretation": reading,
        "TestType": f"Retrospective evaluation on the {kind} part",
        "TestingDataDescription": data,
        "ValidationProcessAndJustification": process,
    }


def _all(result: Evaluation) -> str:
    from medtransfer.metrics.names import LABELS

    return "; ".join(f"{LABELS.get(k, k)} {_text(e)}" for k, e in result.estimates.items())


def _text(value: Estimate) -> str:
    return str(value)


def _add(parent: ElementTree.Element, fields: Card) -> None:
    for name, value in fields.items():
        child = ElementTree.SubElement(parent, name)
        if isinstance(value, dict):
            _add(child, value)
        else:
            child.text = _NOT_XML.sub("\ufffd", value)
