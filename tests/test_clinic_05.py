"""Chapter 5's bug clinic: every patient shows its symptom, and the cure removes it. The code is the chapter's own, and
most of it runs on real ranks."""

import pytest
from clinics import clinic_of

pytestmark = pytest.mark.slow  # whole cells of a chapter


@pytest.fixture(scope="module")
def chapter():
    return clinic_of("05_efficient_training", lambda names: {})


def on_both(chapter, program, name):
    """What rank 0 gave back for the patient and for the cure."""
    patient, cured = chapter[f"patient_{name}"], chapter[f"cured_{name}"]
    found = chapter["of_rank_0"](chapter[program], patient, cured)
    return found[f"patient_{name}"], found[f"cured_{name}"]


def test_sharding_models_that_differ_makes_a_patchwork_of_them(chapter):
    (first, second), cured = on_both(chapter, "whose_weights", "start")
    assert 0.3 < first < 0.7 and 0.3 < second < 0.7
    assert cured == [1, 0]


def test_a_limit_on_the_scaled_gradient_shrinks_the_step(chapter):
    after = chapter["length_after"]
    assert after(chapter["patient_clip"], 2.0**16) == pytest.approx(2.0**-17, rel=1e-3)  # half of the limit
    lengths = [after(chapter["cured_clip"], scale) for scale in (1.0, 2.0**16)]
    assert lengths == [pytest.approx(after(chapter["patient_clip"], 1.0), rel=1e-4)] * 2


def test_gradients_that_are_never_summed_lie_apart(chapter):
    patient, cured = on_both(chapter, "gradients_apart", "accumulation_on_ranks")
    assert patient > 0.1 and cured == 0


def test_the_same_seed_on_all_ranks_reads_the_same_rows(chapter):
    assert chapter["rows_of_a_step"](chapter["patient_loader"]) == (16, 8)
    assert chapter["rows_of_a_step"](chapter["cured_loader"]) == (16, 16)


def test_rank_0_alone_saves_a_part_of_the_model(chapter):
    patient, cured = on_both(chapter, "share_saved", "save")
    assert patient == pytest.approx(0.5, abs=0.01) and cured == 1


def test_the_chapter_s_patients_are_all_tested_here(chapter):
    assert sum(name.startswith("patient_") for name in chapter) == 5
