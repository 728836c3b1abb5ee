"""What was found about memorisation, for a terminal."""

from rich.console import RenderableType
from rich.table import Table

from dpldm.evaluation.memorisation import ALARM, Memorisation


def memorisation_table(found: Memorisation) -> RenderableType:
    """Both tests, headed by whether they may be shown, and what they amount to."""
    near, copies = found.nearness, found.copies
    table = Table(title=f"memorisation ({found.status})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "nearer to training images",
        f"{near.share:.1%} of {copies.synthetic:,} synthetic images (50 % if training made no difference; "
        f"p = {near.p_value:.2g})",
    )
    table.add_row("", f"median ratio of distances {near.ratio:.3f}, {near.real:,} real images on each side")
    table.add_row(
        "close to one image alone",
        f"{copies.found:,} of {copies.synthetic:,}, at most {copies.share_at_most:.2%} (95 %; "
        f"p = {copies.p_value:.2g})",
    )
    table.add_row("", f"against all {copies.trained:,} training images, by {found.extractor}")
    verdict = "ALARM: more than chance explains" if found.alarm else "no more than chance explains"
    table.add_row("amounts to", f"{verdict} (p below {ALARM:g} in either)")
    table.add_row("", "It proves nothing, and neither adds to (epsilon, delta) nor replaces it.")
    return table
