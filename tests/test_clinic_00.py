"""Chapter 0's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import numpy as np
import pytest
from clinics import clinic_of

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    def earlier(names):
        minilm, minilm_tokenizer = names["load_minilm"]()
        probe = names["runs"].SentenceProbe(labels=(100,), seeds=2, tests=150)
        return {"minilm": minilm, "minilm_tokenizer": minilm_tokenizer, "probe": probe}

    return clinic_of("00_start_here", earlier)


def two_models(second):
    """Which of 500 texts two models get right: the first 70 in a hundred, the second that many."""
    order = np.random.default_rng(1)
    return order.random(500) < 0.70, order.random(500) < second


def test_twenty_texts_name_a_winner_among_equals(chapter):
    share = chapter["disagreement"]
    alike = two_models(0.70)
    patient, cured = share(chapter["patient_winner"], alike), share(chapter["cured_winner"], alike)
    assert patient["first"] > 0.25 and patient["second"] > 0.25
    assert cured[None] > 0.9


def test_the_cure_still_sees_a_difference_that_is_there(chapter):
    apart = two_models(0.45)
    assert chapter["cured_winner"](*apart) == "first" == chapter["patient_winner"](*apart)
    assert chapter["cured_winner"](*reversed(apart)) == "second"


def test_another_model_s_tokenizer_costs_the_features_their_sense(chapter):
    score = chapter["accuracy_on_features"]
    patient, cured = score(chapter["patient_features"]), score(chapter["cured_features"])
    assert patient < 0.60
    assert cured > patient + 0.04


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert {name for name in chapter if name.startswith("patient_")} == {"patient_winner", "patient_features"}
