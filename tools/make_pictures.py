"""Draw the README's pictures with the course's own functions: `python tools/make_pictures.py`."""

from pathlib import Path

from course_lib import plots
from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.files import write_atomically
from course_lib.widgets.masking import compute_masking, draw_masking
from course_lib.widgets.objectives import five_tasks

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
SENTENCE = "The film starts slowly, but the last half hour is worth every minute of it."


def main():
    tokenizer = course_tokenizer()
    reviews = [review.text for review in reviews_of("dev", "imdb")[1:65]]
    input_ids_BT = pad(tokenizer.encode_all(reviews), tokenizer.vocabulary, length=128)
    pictures = {
        "five_tasks.png": five_tasks(SENTENCE, tokenizer),
        "mask_probability.png": draw_masking(compute_masking(input_ids_BT, tokenizer, mask_prob=0.3)),
    }
    for name, figure in pictures.items():
        print(write_atomically(FOLDER / name, plots.png(figure)))


if __name__ == "__main__":
    main()
