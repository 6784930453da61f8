# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] name="title"
# # 01 Pre-training objectives
#
# What is a model asked to predict, and what may it look at meanwhile?

# %% name="setup" tags=["setup"]
from IPython.display import display

from course_lib.data import course_tokenizer, pad, reviews_of
from course_lib.plots import show
from course_lib.widgets.masking import compute_masking, describe_masking, draw_masking, mask_explorer

tokenizer = course_tokenizer()
reviews = [review.text for review in reviews_of("dev", "imdb")[:32]]
input_ids_BT = pad(tokenizer.encode_all(reviews), tokenizer.vocabulary, length=128)

# %% [markdown] name="move-mask-probability"
# **Move.** How far can you turn the mask probability up before the hidden tokens outnumber those that explain them?

# %% name="explore-mask-probability"
display(mask_explorer(input_ids_BT, tokenizer))

# %% name="mask-probability-without-a-kernel"
view = compute_masking(input_ids_BT, tokenizer, mask_prob=0.15)
show(draw_masking(view), describe_masking(view))
