"""Chapter 3's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import pytest
from clinics import clinic_of

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    return clinic_of("03_parameter_efficient_strategies", lambda names: {})


def test_a_scale_by_the_width_merges_another_function_and_a_scale_by_the_rank_the_same(chapter):
    assert chapter["merged_and_wrapped"](chapter["patient_merged"]) > 0.3
    assert chapter["merged_and_wrapped"](chapter["cured_merged"]) < 1e-5


def test_two_factors_at_zero_never_leave_it_and_one_random_factor_does(chapter):
    assert chapter["updates_after"](chapter["patient_start"], 5) == 0
    assert chapter["updates_after"](chapter["cured_start"], 5) > 0.01


def test_a_base_that_is_left_trainable_changes_and_a_frozen_one_does_not(chapter):
    assert chapter["base_weights_changed"](chapter["patient_adapt"]) > 1_000_000
    assert chapter["base_weights_changed"](chapter["cured_adapt"]) == 0


def test_an_update_that_is_merged_and_still_acts_counts_twice(chapter):
    assert chapter["served_against_trained"](chapter["patient_load"]) > 0.02
    assert chapter["what_was_added"](chapter["patient_load"]) == pytest.approx(2, rel=1e-3)
    assert chapter["what_was_added"](chapter["cured_load"]) == pytest.approx(1, rel=1e-3)
    assert chapter["served_against_trained"](chapter["cured_load"]) < 1e-5


def test_a_prefix_behind_a_closed_mask_says_nothing_and_behind_an_open_one_much(chapter):
    assert chapter["outputs_of_two_prefixes"](chapter["patient_mask"]) == 0
    assert chapter["outputs_of_two_prefixes"](chapter["cured_mask"]) > 0.05


def test_positions_that_forget_the_prefix_read_another_text_with_a_cache_than_without(chapter):
    assert abs(chapter["loss_of_cached_reading"](chapter["patient_position"])) > 1e-3
    assert abs(chapter["loss_of_cached_reading"](chapter["cured_position"])) < 1e-5


def test_dropout_that_is_not_told_to_stop_gives_another_output_each_time(chapter):
    assert len(set(chapter["three_evaluations"](chapter["patient_update"]))) == 3
    assert len(set(chapter["three_evaluations"](chapter["cured_update"]))) == 1


def test_decay_shrinks_biases_without_a_gradient_and_spared_ones_stay(chapter):
    assert chapter["biases_after"](chapter["patient_bitfit_optimizer"]) < 0.7
    assert chapter["biases_after"](chapter["cured_bitfit_optimizer"]) == pytest.approx(1)


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") for name in chapter) == 8
