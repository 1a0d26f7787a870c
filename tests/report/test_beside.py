"""What stands beside the page: numbers by their schema, the CHAI card, the PDF, checklists, big tables."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluations import EXTRAS, predictions, result

from medtransfer import report
from medtransfer.config import Author
from medtransfer.errors import MissingPackage
from medtransfer.evaluate import calibrate, evaluate, youden
from medtransfer.metrics.intervals import Estimate
from medtransfer.predictions import Task
from medtransfer.report.chai import NAMESPACE, model_card_xml
from medtransfer.report.checklist import FIELDS, ITEMS, LISTS, checklist, numbers
from medtransfer.report.extras import estimate
from medtransfer.report.words import Words
from medtransfer.report.write import metrics_json, page, write_report

# the sequence of the coalition's schema v0.1, written down from its publication
CHAI = {
    "BasicInfo": ["ModelName", "ModelDeveloper", "DeveloperContact"],
    "ReleaseInfo": ["ReleaseStage", "ReleaseDate", "ReleaseVersion", "GlobalAvailability", "RegulatoryApproval?"],
    "ModelSummary": ["Summary", "Keywords"],
    "UsesAndDirections": ["IntendedUseAndWorkflow", "PrimaryIntendedUsers", "HowToUse", "TargetedPatientPopulation",
                          "CautionedOutOfScopeSettings"],
    "Warnings": ["KnownRisksAndLimitations", "KnownBiasesOrEthicalConsiderations", "ClinicalRiskLevel"],
    "TrustIngredients": ["AISystemFacts", "TransparencyInformation"],
    "AISystemFacts": ["OutcomesAndOutputs", "ModelType", "FoundationModels?", "InputDataSource",
                      "OutputAndInputDataTypes", "DevelopmentDataCharacterization", "BiasMitigationApproaches",
                      "OngoingMaintenance", "Security?", "Transparency?"],
    "TransparencyInformation": ["FundingSource", "ThirdPartyInformation?", "StakeholdersConsulted"],
    "KeyMetrics": ["UsefulnessUsabilityEfficacy", "FairnessEquity", "SafetyReliability"],
    "UsefulnessUsabilityEfficacy": (metric := ["MetricGoal", "Result", "Interpretation", "TestType",
                                               "TestingDataDescription", "ValidationProcessAndJustification"]),
    "FairnessEquity": metric,
    "SafetyReliability": metric,
    "Resources": ["EvaluationReferences?", "ClinicalTrial?", "PeerReviewedPublications", "ReimbursementStatus?",
                  "PatientConsentOrDisclosure", "StakeholdersConsulted"],
    "AppliedModelCard": ["BasicInfo", "ReleaseInfo", "ModelSummary", "UsesAndDirections", "Warnings",
                         "TrustIngredients", "KeyMetrics", "Resources", "Bibliography"],
}  # fmt: skip


def fits(element: ElementTree.Element) -> None:
    name = element.tag.removeprefix(f"{{{NAMESPACE}}}")
    children = [child.tag.removeprefix(f"{{{NAMESPACE}}}") for child in element]
    if name not in CHAI:
        assert not children, name
        return
    allowed = [n.rstrip("?") for n in CHAI[name]]
    assert [n for n in allowed if n in children] == children, name
    assert {n for n in CHAI[name] if not n.endswith("?")} <= set(children), name
    for child in element:
        fits(child)


def test_the_chai_card_follows_its_schema_and_escapes() -> None:
    hostile = "</Summary><x a='1'>]]>\x00&amp; \ud800"
    record = {
        "title": hostile,
        "author": {"index_test": hostile, "limitations": "few patients"},
        "model": {"input": hostile},
    }
    root = ElementTree.fromstring(model_card_xml(result("classification", ("no", "yes"), record)))
    assert root.tag == f"{{{NAMESPACE}}}AppliedModelCard"
    fits(root)
    text = {e.tag.split("}")[1]: e.text or "" for e in root.iter()}
    assert text["ModelName"] == hostile.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert text["KnownRisksAndLimitations"].startswith("few patients")
    assert text["ClinicalRiskLevel"] == "Not stated"
    assert "AUROC" in next(e.text for e in root.iter(f"{{{NAMESPACE}}}Result"))


def valid(value: object, schema: dict[str, object], root: dict[str, object]) -> None:
    """The part of JSON schema that ours uses, where the package jsonschema is not there."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[1]
        schema = root["$defs"][name] | {k: v for k, v in schema.items() if k != "$ref"}  # type: ignore[index]
    types = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, types[n]) and not isinstance(value, bool) for n in named), (value, named)
    assert "const" not in schema or value == schema["const"]
    assert "enum" not in schema or value in schema["enum"]  # type: ignore[operator]
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), schema.get("required")  # type: ignore[call-overload]
        known = schema.get("properties", {})
        for key, item in value.items():
            inner = known.get(key, schema.get("additionalProperties", {}))  # type: ignore[attr-defined]
            assert inner is not False, key
            valid(item, inner, root)
    if isinstance(value, list):
        for item in value:
            valid(item, schema.get("items", {}), root)  # type: ignore[arg-type]


def test_metrics_json_follows_its_schema() -> None:
    schema = json.loads((Path(report.__file__).parent / "metrics.schema.json").read_text(encoding="utf-8"))
    p, val = predictions("classification", ("no", "yes")), predictions("classification", ("no", "yes"), seed=5)
    val = replace(val, case=np.char.add("v", val.case), patient=np.char.add("v", val.patient), part="val")
    full = evaluate(
        p, threshold=youden(val), calibrator=calibrate(val), controls={"border": p}, bootstrap=100, prevalences=(0.1,),
        subgroups={"site": np.array(["a", "b"] * 100)},
    )  # fmt: skip
    four = result("classification", ("a", "b", "c", "d"))
    undefined = evaluate(p.take(p.reference == 1), bootstrap=100)
    names: list[Task] = ["multilabel", "ordinal", "regression"]
    others = [result(task, ("one", "two", "three")) for task in names]
    for found in (full, four, *others, undefined):
        content = json.loads(metrics_json(found), parse_constant=lambda name: pytest.fail(name))
        valid(content, schema, schema)
        try:
            import jsonschema
        except ImportError:
            continue
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(content, schema, cls=jsonschema.Draft202012Validator)
    content["estimates"]["auroc"]["value"] = "high"
    with pytest.raises(AssertionError):
        valid(content, schema, schema)


def test_every_item_of_the_three_checklists_is_there_once_or_more() -> None:
    letters = {"3": "abc", "5": "ab", "6": "abc", "8": "abc", "9": "abc", "12": "abcdefg", "18": "abcdef", "20": "abc",
               "23": "ab", "27": "abc"}  # fmt: skip
    wanted = {
        "CLAIM": {str(k) for k in range(1, 45)},
        "TRIPOD+AI": {f"{k}{part}" for k in range(1, 28) for part in letters.get(str(k), [""])},
        "STARD-AI": {
            f"{k}{part}"
            for k in range(1, 41)
            for part in {15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"}.get(k, [""])
        },
    }
    for name in LISTS:
        found = {number for item in ITEMS for number in numbers(item, name)}
        assert found == wanted[name], name


def test_the_author_can_say_what_the_run_cannot() -> None:
    assert set(Author.model_fields) == set(FIELDS)
    found = result("classification", ("no", "yes"))
    empty, said = (checklist(found, author, {"discrimination"}) for author in ({}, dict.fromkeys(FIELDS, "said")))
    assert {row.status for row in empty.rows} == {"filled", "missing"}
    still = [row.topic for row in said.rows if row.status == "missing"]
    assert all(not ITEMS[[i.topic for i in ITEMS].index(topic)].author for topic in still)
    assert [done for _, done, _ in said.counts] > [done for _, done, _ in empty.counts]
    assert all(row.where in {"discrimination", "use"} for row in said.rows)


def test_pdf_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("weasyprint", reason="medtransfer[pdf] is not installed")
    write_report(result("classification", ("no", "yes")), tmp_path / "study.html", pdf=True)
    pdf = (tmp_path / "study.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 3 or b"/ObjStm" in pdf


def test_pdf_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(MissingPackage, match=r"medtransfer\[pdf\]"):
        write_report(result("classification", ("no", "yes")), tmp_path, pdf=True)


def test_the_case_table_has_all_cases_the_worst_first() -> None:
    found = result("classification", ("no", "yes"))
    text = page(found, Words())
    body = text[text.index('id="case-table"') :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    shown = re.findall(r'<th scope="row"[^>]*>(?:<a[^>]*>)?(case-\d+)', body)
    p = found.predictions
    assert sorted(shown) == sorted(p.case.tolist())
    off = 1 - p.probability[np.arange(len(p)), p.reference]
    assert shown[0] == p.case[off.argmax()]
    assert body.count('class="wrong"') == int((found.called != p.reference).sum())


def test_optional_sections_show_themselves_only_where_they_were_computed() -> None:
    names = ("uncertainty", "enough", "segmentation")
    without, having = (page(result("classification", ("no", "yes"), r), Words()) for r in (None, None))
    assert not [n for n in names if f'<section id="{n}"' in without]
    having = page(replace(result("classification", ("no", "yes")), record=EXTRAS), Words())
    assert [n for n in names if f'<section id="{n}"' in having] == list(names)
    assert '0.910 <span class="whole">(0.860–0.950)</span>' in having
    assert estimate(0.5) == Estimate(0.5)
    assert estimate({"value": None, "note": "too few"}) == Estimate(None, note="too few")


@pytest.mark.slow
def test_ten_thousand_cases_stay_small_and_quick(tmp_path: Path) -> None:
    found = result("classification", ("no", "yes"), n=10_000)
    started = time.perf_counter()
    path = write_report(found, tmp_path)
    assert time.perf_counter() - started < 60
    assert path.stat().st_size < 10e6
    assert "3\u202f000" in path.read_text(encoding="utf-8")
