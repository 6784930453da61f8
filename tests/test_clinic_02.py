"""Chapter 2's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import pytest
from clinics import clinic_of

from course_lib.data import PretrainingDataset, training_rows
from course_lib.layers import TransformerConfig

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    """The names that the clinic's cells define, on real held-out rows."""

    def prepare(names):
        held_out, vocabulary = training_rows(64, split="dev", documents=120), names["vocabulary"]
        dataset = PretrainingDataset(held_out, vocabulary, "causal", batch_size=8)
        small = TransformerConfig(vocabulary.size, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_len=64)
        return {"small": small, "dataset": dataset, "dev_batches": [dataset.batch(k) for k in range(2)]}

    return clinic_of("02_pretraining_loop", prepare)


def test_a_warm_up_from_zero_wastes_its_first_step(chapter):
    assert chapter["weights_moved"](chapter["patient_warmup"]) == 0
    assert chapter["weights_moved"](chapter["patient_warmup"], steps=2) > 0
    assert chapter["weights_moved"](chapter["cured_warmup"]) > 0


def test_a_mean_of_means_has_another_gradient_and_a_sum_divided_once_has_not(chapter):
    assert chapter["gradient_error"](chapter["patient_accumulation"]) > 0.1
    assert chapter["gradient_error"](chapter["cured_accumulation"]) < 1e-5


def test_a_loss_averaged_over_padding_falls_with_padding(chapter):
    loss, padded = (chapter["loss_when_padded"](chapter["patient_loss"], extra) for extra in (0, 200))
    assert padded < 0.5 * loss
    loss, padded = (chapter["loss_when_padded"](chapter["cured_loss"], extra) for extra in (0, 200))
    assert padded == pytest.approx(loss, rel=0.05)  # another draw of logits for other places


def test_a_rule_by_names_lets_scales_decay_and_a_rule_by_shape_does_not(chapter):
    assert chapter["scales_after"](chapter["patient_groups"]) < 0.5
    assert chapter["scales_after"](chapter["cured_groups"]) == 1


def test_a_cosine_that_is_not_held_rises_again(chapter):
    assert chapter["patient_cosine"](150, 100) > 0.4 > chapter["patient_cosine"](99, 100)
    assert chapter["cured_cosine"](150, 100) == 0
    assert chapter["cured_cosine"](50, 100) == pytest.approx(chapter["patient_cosine"](50, 100))


def test_a_gradient_that_is_not_erased_grows(chapter):
    norms = chapter["norms_on_one_batch"](chapter["patient_step"])
    assert norms[-1] > 10 * norms[0]
    norms = chapter["norms_on_one_batch"](chapter["cured_step"])
    assert norms[-1] == pytest.approx(norms[0], rel=0.02)


def test_a_checkpoint_without_random_state_resumes_another_run(chapter):
    assert chapter["weights_that_differ"](chapter["patient_take"], chapter["patient_restore"]) > 0
    assert chapter["weights_that_differ"](chapter["cured_take"], chapter["cured_restore"]) == 0


def test_an_evaluation_with_dropout_gives_another_figure_each_time(chapter):
    assert len(set(chapter["three_times"](chapter["patient_evaluation"]))) == 3
    assert len(set(chapter["three_times"](chapter["cured_evaluation"]))) == 1


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") for name in chapter) == 9  # the checkpoint's patient has two functions
