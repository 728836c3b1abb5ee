"""Makers of public image sets, on which autoencoder and denoiser are pre-trained at no privacy cost.

`make_icons` draws icons (grey shapes, flat or shaded like cloth; or colour), `make_glyphs` letters of free
fonts. Both return a `PublicSet`, which knows its licences and saves itself with a contact sheet for a reader
to judge. Both leave digits out, so that digits remain usable as private data. `write_emoji` writes the emoji of one
vendor as a private-like benchmark, which `make_icons` can hold out.

    collection.py   PublicSet: arrays, provenance, contact sheets
    icons.py        make_icons
    icon_sets.py    which icons may be used: licences, logos, sizes
    emoji.py        write_emoji, and what it holds out of public icons
    rendering.py    an SVG document as pixels
    digits.py       which icons may show a digit
    glyphs.py       make_glyphs
    fonts.py        which font files may be used: licences; families and hold-outs
    placing.py      random placement of a shape
    shading.py      cloth-like grey shading
"""
