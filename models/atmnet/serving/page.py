"""The page, in Gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..drawing.objects import SHOWN_FROM
from ..predicting.options import Options
from ..tasks import CLASSIFICATION, DETECTION, NOUNS, About
from .showing import Showing, probabilities

KEPT = 1800  # seconds that photos and pictures stay on the disk
LOOKED_FOR = 60  # seconds between looks for older ones
HEIGHT = 420  # of pictures on the screen
MOST_CLASSES = 20  # that a slider goes to


def build(showing: Showing) -> gr.Blocks:
    """The page of a model: a photo on the left, what is found on it on the right, where its tokens look below."""
    with gr.Blocks(title="ATMNet", analytics_enabled=False, delete_cache=(LOOKED_FOR, KEPT)) as page:
        gr.HTML(heading(showing.described))
        with gr.Row():
            with gr.Column():
                photo: Any = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], height=HEIGHT, **_picture("photo", "Photo")
                )
                photo.preprocess = lambda sent: sent and sent.path  # Gradio would open it too, and with every format of Pillow's
                slider, options = _slider(showing.described)
            with gr.Column():
                outputs, values = _outputs(showing)

        def find(file: str | None, value: float) -> Any:
            with _telling(file):
                seen = values(showing.find(file, options(value))) if file else [None] * len(outputs)
            return dict(zip(outputs, seen, strict=True))

        network: dict[str, Any] = dict(concurrency_limit=1, concurrency_id="network")  # one photo at a time, whoever asks for what
        found = photo.upload(find, [photo, slider], outputs, api_name="find", **network)  # "change" and "input" come twice
        photo.clear(find, [photo, slider], outputs, api_visibility="private", **network)
        slider.release(find, [photo, slider], outputs, api_visibility="private", **network)
        if showing.no_offsets:
            gr.HTML(f"<p>Where its tokens look cannot be shown. {escape(showing.no_offsets)}</p>")
            return page
        gr.HTML("<h3>Where a token looks</h3><p>The one in the middle, or the one that you click on the photo.</p>")
        looks = gr.Image(format="png", interactive=False, show_label=False, **_picture("looks", "Where a token looks"))

        def look(file: str | None) -> Any:
            with _telling(file):
                return showing.look(file) if file else None

        def look_at(file: str | None, clicked: gr.SelectData) -> Any:
            with _telling(file):
                return showing.look(file, (clicked.index[0], clicked.index[1])) if file else None

        found.success(look, [photo], [looks], api_name="look", **network)
        photo.clear(look, [photo], [looks], api_visibility="private", **network)
        photo.select(look_at, [photo], [looks], api_visibility="private", **network)
    return page


def heading(described: About) -> str:
    """What the model is, in HTML."""
    facts = [f"{len(described.classes)} classes", *(f"{name} {value:.4g}" for name, value in described.metrics.items())]
    return f"<h1>What {escape(described.name)} sees</h1><p>A {NOUNS[described.task]} of {escape(', '.join(facts))}</p>"


def _picture(name: str, label: str) -> dict[str, Any]:
    """How a picture looks; none can be shared from here."""
    return dict(elem_id=name, label=label, buttons=["download", "fullscreen"])


def _slider(described: About) -> tuple[gr.Slider, Callable[[float], Options]]:
    """The setting that suits the task, and the options of its value."""
    if described.task == CLASSIFICATION:
        most = min(MOST_CLASSES, len(described.classes))
        return gr.Slider(1, most, min(Options.top, most), step=1, label="Classes shown"), lambda value: Options(top=int(value))
    start = SHOWN_FROM if described.task == DETECTION else 0
    return gr.Slider(0, 1, start, step=0.05, label="Leave out what is less probable"), lambda value: Options(threshold=value)


def _outputs(showing: Showing) -> tuple[list[Any], Callable[[Any], list[Any]]]:
    """Components for a result, and their values."""
    if showing.described.task == CLASSIFICATION:
        return [gr.Label(label="Classes", elem_id="classes")], lambda found: [probabilities(found)]
    picture = gr.Image(format="jpeg", interactive=False, height=HEIGHT, **_picture("found", "Found"))
    table = gr.Dataframe(headers=list(showing.columns), datatype="str", interactive=False, max_height=300)
    return [picture, table], lambda found: [found.draw(), [[_cell(row[column]) for column in showing.columns] for row in found.rows()]]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@contextmanager
def _telling(file: str | None) -> Iterator[None]:
    """What is wrong with a photo, or with a setting, as a message on the page; the server goes on."""
    try:
        yield
    except ValueError as error:
        path = Path(file or "")
        reason = str(error).replace(str(path), path.name) if path.exists() else "it is no longer kept here, drop it once more"
        raise gr.Error(escape(f"This photo cannot be shown: {reason}"), print_exception=False) from error
