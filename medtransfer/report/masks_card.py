"""Model cards of a segmentation: the Markdown card and the Applied Model Card, from what its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtransfer.report.words import Words


def cards(view: Mapping[str, Any], w: Words) -> dict[str, str]:
    """``model_card.md`` and ``model_card.xml`` by name.

    Parameters
    ----------
    view : mapping
        What :func:`medtransfer.report.masks.view` gives the templates.
    w : Words
    """
    from medtransfer.report.chai import card, xml_text
    from medtransfer.report.write import card_text

    found: Any = card(view["result"])
    found["Resources"]["EvaluationReferences"] = "report.html, segmentation.json and segmentation.csv beside this card"
    found["KeyMetrics"]["SafetyReliability"]["Interpretation"] = (
        "Leakage, sample size and structures that were missed entirely were looked at."
    )
    found["TrustIngredients"]["AISystemFacts"]["OutputAndInputDataTypes"] = (
        f"Input: {view['model'].get('input', 'images')}. Output: a mask on the image's voxels, of "
        f"{', '.join(view['classes'])}."
    )
    return {"model_card.md": card_text(view, w), "model_card.xml": xml_text(found)}
