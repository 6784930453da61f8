"""Explorer: from what distribution the next token is drawn, and what temperature, top-k and top-p make of it.

Axes: S how many tokens are written behind the prompt, V the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from course_lib import plots
from course_lib.generation import generate, next_token_probabilities
from course_lib.model import Decoder, evaluating
from course_lib.plots import Candidate
from course_lib.runtime import seeded
from course_lib.tokenizer import Tokenizer
from course_lib.vocabulary import DOCUMENT
from course_lib.widgets.binder import Explorer, bind

SHOWN, STEPS, DRAWN = 12, 20, 20  # likeliest tokens, tokens that the slider steps through, tokens of a continuation
WRITTEN_BY = {"temperature": 0.8, "top_p": 0.95}  # what the slider steps through, the same every time
OFF = 0  # top-k, where every token stays
TOP_K = (1, 2, 3, 5, 10, 20, 40, 70, 100, OFF)
WIDTH, LINES = 7.6 * 72, 3  # points; and how many lines of the text are shown


@dataclass(frozen=True)
class GenerationView:
    """What may come behind a text.

    before, written: the tokens of the prompt, and those that the model has written behind it. candidates: the likeliest
    by the model itself. n_possible: how many of n_tokens may be drawn. entropy, own_entropy: of what is drawn from and
    of the model's own distribution, in bits. continuation: tokens drawn with `seed`, () while none is asked for;
    has_ended: whether the model ended the text behind it.
    """

    before: tuple[str, ...]
    written: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    n_possible: int
    n_tokens: int
    entropy: float
    own_entropy: float
    seed: int | None
    continuation: tuple[str, ...]
    has_ended: bool


class GenerationBench:
    """A decoder and prompts, {name: text}; what the model makes of a prompt is computed when it is first looked at.

    Raises ValueError for no prompts, or one that leaves no room in the model for what is written behind it.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, prompts: Mapping[str, str]) -> None:
        if not prompts:
            raise ValueError("prompts are empty: give at least one, as in {'a film': 'this film was'}")
        self.model, self.tokenizer = model, tokenizer
        vocabulary = tokenizer.vocabulary
        bos, eos = vocabulary.frame_ids("the generation explorer", DOCUMENT)
        self.ids = {name: [bos, *tokenizer.encode(text)] for name, text in prompts.items()}
        room = model.config.max_len - STEPS - DRAWN
        for name, ids in self.ids.items():
            if len(ids) > room:
                raise ValueError(
                    f"prompt {name!r} has {len(ids)} tokens: shorten it to {max(0, room)}, so that {STEPS} + {DRAWN} "
                    f"more fit into the model's max_len {model.config.max_len}"
                )
        may_come_V = vocabulary.is_ordinary_V.index_fill(0, torch.tensor([eos]), True)  # as in `generate`
        self.may_come_V = F.pad(may_come_V, (0, model.config.vocab_size - vocabulary.size))
        self.path = cache(self._path)

    def compute(
        self,
        prompt: str | None = None,
        written: int = 0,
        temperature: float = 1.0,
        top_k: int = OFF,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> GenerationView:
        """written: how many tokens the model has already written. top_k: OFF keeps every token. seed: of a
        continuation, None for none.

        Raises ValueError for a prompt or a number of tokens that is not there, and for options out of range.
        """
        prompt = next(iter(self.ids)) if prompt is None else prompt
        if prompt not in self.ids:
            raise ValueError(f"prompt {prompt!r} is not there: choose one of {', '.join(self.ids)}")
        if not 0 <= written <= STEPS:
            raise ValueError(f"written is {written}: choose from 0 to {STEPS}")
        new, logits_SV = self.path(prompt)
        ids = [*self.ids[prompt], *new[:written]]
        options = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p}
        continuation: list[int] = []
        if seed is not None:
            continuation = generate(self.model, [ids], self.tokenizer.vocabulary, max_new_tokens=DRAWN,
                                    generator=seeded(seed), **options)[0]  # fmt: skip
        own_V = next_token_probabilities(logits_SV[written][None])[0]
        steps = self._step_by_step(logits_SV[written], options)
        drawn_V = steps["top-p"]
        return GenerationView(
            before=self._read(self.ids[prompt]),
            written=self._read(new[:written]),
            candidates=tuple(self._candidate(i, own_V, steps) for i in own_V.topk(SHOWN).indices.tolist()),
            n_possible=int((drawn_V > 0).sum()),
            n_tokens=len(drawn_V),
            entropy=_bits(drawn_V),
            own_entropy=_bits(own_V),
            seed=seed,
            continuation=self._read(continuation),
            has_ended=seed is not None and len(continuation) < DRAWN,
        )

    def _path(self, prompt: str) -> tuple[list[int], Tensor]:
        """STEPS tokens that the model writes behind a prompt, and the logits [S, V] behind each number of them."""
        ids, vocabulary = self.ids[prompt], self.tokenizer.vocabulary
        new = generate(self.model, [ids], vocabulary, max_new_tokens=STEPS, stop_ids=(), generator=seeded(0),
                       **WRITTEN_BY)[0]  # fmt: skip
        input_ids_BT = torch.tensor([[*ids, *new]], device=next(self.model.parameters()).device)
        with torch.no_grad(), evaluating(self.model):
            logits_BTV = self.model(input_ids_BT).logits
        return new, logits_BTV[0, len(ids) - 1 :].float().cpu()

    def _step_by_step(self, logits_V: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
        """float64 [V] after each option, in the order in which they act."""
        names, acting = ("special", "temp.", "top-k", "top-p"), {}
        steps = {}
        for name, option in zip(names, (None, "temperature", "top_k", "top_p"), strict=True):
            acting |= {option: options[option]} if option else {}
            steps[name] = next_token_probabilities(logits_V[None], allowed_V=self.may_come_V, **acting)[0]
        return steps

    def _candidate(self, token_id: int, own_V: Tensor, steps: dict[str, Tensor]) -> Candidate:
        cut = next((name for name, probability_V in steps.items() if probability_V[token_id] == 0), "")
        name = self._read([token_id])[0]
        return Candidate(name, own_V[token_id].item(), steps["top-p"][token_id].item(), cut)

    def _read(self, ids: list[int]) -> tuple[str, ...]:
        """Tokens as they read; a model may have more ids than its tokenizer, which have no name."""
        size = self.tokenizer.vocabulary.size
        return tuple(self.tokenizer.token(i) if i < size else f"id {i}" for i in ids)


def _bits(probability_V: Tensor) -> float:
    return torch.special.entr(probability_V).sum().item() / torch.log(torch.tensor(2.0)).item()


def draw_generation(view: GenerationView) -> Figure:
    """The text so far, the likeliest tokens with what the options leave of them, and a continuation if there is one."""
    text, is_cut = _last_lines(_boxes(view.before, "context") + _boxes(view.written, "hidden"))
    drawn = _boxes(view.continuation, "target") + _boxes(("[EOS]",) * view.has_ended, "special")
    below, _ = _last_lines(drawn) if drawn else (None, False)
    bars = 24 + text.height
    last = bars + 20 + plots.candidates_height(len(view.candidates))
    figure = Figure(figsize=(WIDTH / 72, (last + 24 + (below.height if below else 0) + 4) / 72))
    n_tokens = len(view.before) + len(view.written)
    plots.write(figure, 8, 2, f"The text so far: the end of its {n_tokens} tokens" if is_cut else "The text so far")
    looks = [("prompt", plots.ROLES["context"]), ("written by the model", plots.ROLES["hidden"])]
    plots.paint_token_legend(figure, looks, WIDTH - 206, 0)
    plots.paint_tokens(figure, text, 8, 24)
    title = f"The next token: {view.n_possible:,} of {view.n_tokens:,} possible, {view.entropy:.2f} bits"
    plots.write(figure, 8, bars, title)
    own = f"(the model’s own: {view.own_entropy:.2f} bits)"
    plots.Canvas(figure, 16, bars).write_all([(plots.text_width(title, bold=True), 11, own)], align=0)
    n_others = view.n_tokens - len(view.candidates)
    plots.paint_candidates(plots.Canvas(figure, 8, bars + 20), view.candidates, n_others, WIDTH - 16)
    if below:
        plots.write(figure, 8, last, f"One text drawn with these options, seed {view.seed}")
        plots.paint_tokens(figure, below, 8, last + 24)
    else:
        hint = f"Press “write on” to draw {DRAWN} tokens with these options."
        plots.Canvas(figure, 8, last).write_all([(0, 11, hint)], align=0)
    return figure


def _boxes(tokens: tuple[str, ...], role: str) -> list[tuple[str, str]]:
    return [(token, "special" if token in ("[BOS]", "[EOS]") else role) for token in tokens]


def _last_lines(tokens: list[tuple[str, str]]) -> tuple[plots.TokenLayout, bool]:
    """The last LINES lines of tokens with their roles, and whether others stood before them."""
    row = plots.TokenRow("", [token for token, _ in tokens], [role for _, role in tokens])
    layout = plots.lay_out_tokens([row], WIDTH - 16)
    lines = sorted({y for _, y, *_ in layout.boxes})
    over = lines[max(0, len(lines) - LINES)] - lines[0]
    boxes = [(x, y - over, *box) for x, y, *box in layout.boxes if y >= lines[0] + over]
    return replace(layout, boxes=boxes, height=layout.height - over), over > 0


def describe_generation(view: GenerationView) -> str:
    """The picture in words."""
    best = ", ".join(
        f"{plots.spelled(c.token)} {c.own:.1%} " + (f"cut by {c.cut}" if c.cut else f"drawn {c.drawn:.1%}")
        for c in view.candidates
    )
    said = (
        f"Behind “{''.join(view.before[1:] + view.written)[-80:]}” {view.n_possible:,} tokens are possible, "
        f"{view.entropy:.2f} bits; the model itself has {view.own_entropy:.2f} bits. The likeliest, the model’s own "
        f"probability first: {best}."
    )
    return said + (f" Drawn with seed {view.seed}:{''.join(view.continuation)}" if view.seed is not None else "")


class WriteOn(widgets.Button):
    """A button that asks for a continuation. value: the seed to draw it with, None where nobody has asked since the
    options were moved last: drawing takes too long to follow a slider."""

    def __init__(self) -> None:
        super().__init__(description="write on", tooltip=f"draw {DRAWN} tokens with the options as they are now")
        self.value: int | None = None
        self.seed = 0
        self.on_click(lambda _button: self.ask(self.seed))

    def ask(self, seed: int) -> None:
        """From now on the continuation with this seed is wanted."""
        self.value = self.seed = seed

    def forget(self, _change: Any) -> None:
        """The options have moved: what was drawn is not theirs."""
        self.value = None


def generation_explorer(model: Decoder, tokenizer: Tokenizer, prompts: Mapping[str, str]) -> Explorer:
    """A list of prompts, {name: text}, sliders for how much is written and for temperature, top-k and top-p, and two
    buttons that write on: "write on" with the random numbers of before, "another draw" with others."""
    bench, write = GenerationBench(model, tokenizer, prompts), WriteOn()
    another = widgets.Button(description="another draw", tooltip="draw with other random numbers")
    another.on_click(lambda _button: write.ask(write.seed + 1))
    layout, style = widgets.Layout(width="430px", max_width="100%"), {"description_width": "90px"}

    def control(kind: Any, name: str, tooltip: str, **more: Any) -> widgets.Widget:
        made = kind(description=name, tooltip=tooltip, layout=layout, style=style, **more)
        made.observe(write.forget, names="value")
        return made

    box = bind(
        bench.compute,
        draw_generation,
        describe=describe_generation,
        prompt=control(widgets.Dropdown, "prompt", "the text that the model goes on with", options=list(prompts)),
        written=control(
            widgets.IntSlider, "written", "how many tokens the model has written behind the prompt", max=STEPS, value=0
        ),
        temperature=control(
            widgets.FloatSlider, "temperature", "divides the scores; 0 leaves only the best token",
            min=0.0, max=2.0, step=0.05, value=1.0,
        ),
        top_k=control(
            widgets.SelectionSlider, "top-k", "only the k likeliest tokens stay",
            options=[(str(k) if k else "off", k) for k in TOP_K], value=OFF,
        ),
        top_p=control(
            widgets.FloatSlider, "top-p", "only the fewest tokens that have this probability together stay; 1 is off",
            min=0.1, max=1.0, step=0.05, value=1.0,
        ),
        seed=write,
        another=another,
    )  # fmt: skip
    sliders, below = box.children[:5], box.children[7:]
    box.children = [*sliders, widgets.HBox([write, another]), *below]
    return box
