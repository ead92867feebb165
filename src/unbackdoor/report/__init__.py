"""What a reader sees of a run: HTML, figures, terminal table and model card, all made from `report.json` alone."""

from unbackdoor.report.figures import figure_files, save_figures
from unbackdoor.report.html import render
from unbackdoor.report.model_card import model_card
from unbackdoor.report.terminal import table
from unbackdoor.visible import one_line, visible

__all__ = [
    "figure_files",
    "model_card",
    "one_line",
    "render",
    "save_figures",
    "table",
    "visible",
]
