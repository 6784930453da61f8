"""The implementations behind the course: how language models are pre-trained and fine-tuned.

The modules lie in layers, and each imports only from the layers below its own: at the bottom what knows no
model (`runtime`, `files`, `vocabulary`, `masks`), then objectives, data and models, then training and
evaluation, whole runs, and on top the widgets, checks and commands. Import what you need by its module,
`from course_lib.objectives import ...`; the package itself imports none of them.
"""

import os

# Threads of torch that wait for each other spin. Where something else wants the cores, a browser say, a training step
# then takes several times as long: let them sleep sooner, which costs a small model a little where nothing else runs
# (benchmarks/waiting_threads.py). GNU's library reads this, on Linux, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
