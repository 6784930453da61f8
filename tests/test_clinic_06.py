"""Chapter 6's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import pytest
from clinics import clinic_of

pytestmark = pytest.mark.slow  # the whole text of the chapter is read


@pytest.fixture(scope="module")
def chapter():
    return clinic_of("06_capstone", lambda names: {"text": names["own_text"](None)})


def test_a_smaller_tokenizer_has_the_lower_loss_per_token_and_is_worse(chapter):
    large, small = chapter["large_and_small"](chapter["patient_compare"])
    assert small < large - 0.5
    large, small = chapter["large_and_small"](chapter["cured_compare"])
    assert small > large + 0.05


def test_windows_that_overlap_were_read(chapter):
    patient, cured = (chapter["held_out_and_read"](chapter[f"{who}_hold_out"]) for who in ("patient", "cured"))
    assert patient > 0.9 and cured < 0.6


def test_another_tokenizer_makes_a_pre_trained_model_worse_than_guessing(chapter):
    patient, cured = (chapter["loss_with"](chapter[f"{who}_tokenizer"]()) for who in ("patient", "cured"))
    blind, own_blind = (chapter["loss_with"](chapter[f"{w}_tokenizer"](), blind=True) for w in ("patient", "cured"))
    assert patient > 0.9 * blind and cured < 0.6 * own_blind and patient > 2.5 * cured


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") for name in chapter) == 3
