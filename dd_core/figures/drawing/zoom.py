"""Panels that are moved and zoomed with the pointer."""

from typing import Any

import altair as alt

# A page scrolls when the wheel turns over a chart; browsers report a pinch as a wheel that turns with Ctrl held.
_WHEEL = "wheel![event.ctrlKey || event.altKey]"
HELP = "Drag: move. Pinch, or wheel with Ctrl or Alt held: zoom. Double click: all of it again."


def zoomable(panel: Any, name: str, *encodings: Any) -> Any:
    """A panel that moves and zooms; what leaves it then is cut off, but for text, which may stand outside.

    Args:
        panel: of layers; the first one has the scales.
        name: of no other panel of the figure; the same whenever it is drawn.
        encodings: ``x``, ``y`` or both, which is the default.
    """
    changed = panel.copy(deep=["layer"])
    for layer in changed.layer:
        mark: Any = layer.mark
        definition: dict[str, Any] = {"type": mark} if isinstance(mark, str) else mark.to_dict()
        # Without a word Vega-Lite cuts off text, too, where a scale is bound to the pointer.
        layer.mark = alt.MarkDef(**definition | {"clip": definition["type"] != "text"})
    interval = alt.selection_interval(
        name=f"zoom_{name}", bind="scales", encodings=list(encodings or ("x", "y")), zoom=_WHEEL
    )
    return changed.add_params(interval)


def is_zoomable(specification: dict[str, Any]) -> bool:
    """Whether any panel of a drawn chart moves and zooms."""
    return any(param.get("bind") == "scales" for param in specification.get("params", ()))
