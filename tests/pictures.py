"""What can be read in a picture: every piece of text with its box, however it was written."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from course_lib import plots
from course_lib.plots.theme import Canvas


def reader(monkeypatch):
    """Draws, and gives the figure with every piece of text in it and its box in pixels: letters that a Canvas wrote as
    outlines, those of figures, and those of axes."""
    outlined = []
    write_all = Canvas.write_all

    def noting(self, places, *, size=plots.theme.FONT, align=0.5, upright=False, **style):
        places = list(places)
        for x, y, text in places:
            left = self.left + x - align * plots.text_width(text, size=size)
            box = (
                left,
                self.top + y - 0.37 * size,
                left + plots.text_width(text, size=size),
                self.top + y + 0.37 * size,
            )
            outlined.append((text, box))
        write_all(self, places, size=size, align=align, upright=upright, **style)

    monkeypatch.setattr(Canvas, "write_all", noting)

    def read(draw, *args):
        outlined.clear()
        figure = draw(*args)
        assert isinstance(figure, Figure)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        scale, high = figure.dpi / 72, figure.get_figheight() * figure.dpi
        words = [(text, Bbox([[x0 * scale, high - y1 * scale], [x1 * scale, high - y0 * scale]]))
                 for text, (x0, y0, x1, y1) in outlined if text]  # fmt: skip
        pieces = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
        for axes in figure.axes:
            pieces += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, up = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= up]
                pieces += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        for piece in pieces:
            if piece.get_text():
                shrink = (0.7, 0.96) if piece.get_rotation() == 90 else (0.96, 0.7)
                words.append((piece.get_text(), piece.get_window_extent(renderer).shrunk(*shrink)))
        return figure, words

    return read


def assert_readable(figure, words):
    wide, high = figure.get_size_inches() * figure.dpi
    for text, box in words:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high, f"{text!r} leaves the picture"
    for (one, a), (other, b) in itertools.combinations(words, 2):
        assert not a.overlaps(b), (one, other)
