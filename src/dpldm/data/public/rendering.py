"""An SVG document as pixels."""

import io

from PIL import Image

from dpldm.errors import MissingExtra, UserError


def render(svg: str, size: int) -> Image.Image | None:
    """RGBA, `size` pixels a side at most; None for what the renderer does not know.

    Raises:
        MissingExtra: if resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("resvg-py", "public", "Drawing icons") from error
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError:  # a handful of documents
        return None
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def render_on_white(svg: str, size: int) -> Image.Image:
    """RGB, `size` pixels a side, in the middle of a white square.

    Raises:
        UserError: the renderer does not know it.
        MissingExtra: if resvg-py is not installed.
    """
    drawn = render(svg, size)
    if drawn is None:
        raise UserError("An emoji cannot be drawn: unpack the package again, or choose another set.")
    ground = Image.new("RGBA", (size, size), "white")
    ground.alpha_composite(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return ground.convert("RGB")
