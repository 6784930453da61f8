"""Chapter 1's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own."""

import pytest
import torch
from clinics import clinic_of

from course_lib.data import training_rows
from course_lib.layers import TransformerConfig

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    """The names that the clinic's cells define, on real held-out rows."""

    def prepare(names):
        held_out, size = training_rows(split="dev"), names["vocabulary"].size
        tiny = TransformerConfig(size, d_model=64, n_layers=2, n_heads=4, d_ff=256, max_len=16, positions="rotary")
        return {"held_out": held_out, "tokens_BT": held_out.ids_NT[:400], "tiny": tiny}

    return clinic_of("01_pretraining_objectives", prepare)


def test_denoising_with_cut_labels_is_out_of_step_and_a_decoder_s_labels_need_not_be_in_step(chapter):
    assert chapter["kept_in_step"](chapter["patient_denoise"]) < 0.2
    assert chapter["kept_in_step"](chapter["cured_denoise"]) is None
    assert chapter["kept_in_step"](lambda ids, is_noise, mask_id: (ids, ids)) == 1  # the measure can reach its best


def test_a_random_token_from_all_ids_is_sometimes_special_and_one_of_the_ordinary_never(chapter):
    put_in = chapter["tokens_put_in"](chapter["patient_swap"])
    expected = len(put_in) * len(chapter["vocabulary"].special_ids) / chapter["vocabulary"].size
    assert abs(chapter["special_among"](put_in) - expected) < 4 * expected**0.5
    assert chapter["special_among"](chapter["tokens_put_in"](chapter["cured_swap"])) == 0


def test_special_tokens_that_see_all_leak_answers_by_a_detour_and_only_where_there_are_any(chapter):
    cls = [chapter["vocabulary"].cls]
    leaked, asked = chapter["answers_leaked"](chapter["patient_permutation"], cls)
    assert leaked == asked > 1
    assert chapter["answers_leaked"](chapter["patient_permutation"], [])[0] == 0
    assert chapter["answers_leaked"](chapter["patient_permutation"], cls, n_layers=1)[0] == 0  # too short for a detour
    assert chapter["answers_leaked"](chapter["cured_permutation"], cls)[0] == 0


def test_masking_in_place_eats_the_dataset_and_masking_a_copy_does_not(chapter):
    eaten = [share for share, _ in chapter["epochs_of"](chapter["patient_mask"])]
    assert eaten == sorted(eaten) and eaten[0] < 0.2 and eaten[-1] > 0.7
    assert max(share for share, _ in chapter["epochs_of"](chapter["cured_mask"])) < 0.2


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") for name in chapter) == 4
    assert torch.is_tensor(chapter["tokens_BT"])
