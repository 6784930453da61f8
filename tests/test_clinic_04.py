"""Chapter 4's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import pytest
from clinics import clinic_of

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    return clinic_of("04_practical_fine_tuning", lambda names: {})


def test_a_split_by_rows_knows_its_tests_and_a_split_by_text_does_not(chapter):
    assert chapter["tests_known"](chapter["patient_split"]) > 0.3
    assert chapter["tests_known"](chapter["cured_split"]) == 0


def test_loss_on_padding_looks_better_than_the_answers_are(chapter):
    reported, answers = chapter["losses_of_tuning"](chapter["patient_batch"])
    assert reported < answers - 1
    reported, cured_answers = chapter["losses_of_tuning"](chapter["cured_batch"])
    assert cured_answers < answers and reported > cured_answers - 1


def test_labels_moved_twice_ask_for_the_token_after_the_next(chapter):
    cured = chapter["loss_on_a_review"](chapter["cured_labels"])
    assert chapter["loss_on_a_review"](chapter["patient_labels"]) > cured + 1


def test_a_cut_at_the_end_takes_the_answers_away(chapter):
    assert chapter["without_an_answer"](chapter["patient_encode"]) > 0.4
    assert chapter["without_an_answer"](chapter["cured_encode"]) == 0


def test_padding_behind_prompts_answers_for_the_padding(chapter):
    assert chapter["same_as_alone"](chapter["patient_next_tokens"]) < 0.5
    assert chapter["same_as_alone"](chapter["cured_next_tokens"]) == 1


def test_the_best_on_the_test_promises_what_the_best_on_dev_does_not(chapter):
    patient, cured = (chapter["promised_and_kept"](chapter[name]) for name in ("patient_report", "cured_report"))
    assert patient > 5 > cured


def test_accuracy_rewards_praising_everything_and_macro_f1_does_not(chapter):
    of_words, of_praise = chapter["two_models"](chapter["patient_score"])
    assert of_praise == pytest.approx(0.95) and of_praise > of_words
    of_words, of_praise = chapter["two_models"](chapter["cured_score"])
    assert of_praise < of_words


def test_a_bold_rate_answers_always_the_same_and_a_modest_one_does_not(chapter):
    bold, modest = (chapter["share_of_praise"](chapter[name]) for name in ("PATIENT_RATE", "CURED_RATE"))
    assert max(abs(share - 0.5) for share, _ in bold) > 0.4
    assert max(abs(share - 0.5) for share, _ in modest) < 0.4


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") or name == "PATIENT_RATE" for name in chapter) == 8
