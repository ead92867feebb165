"""What a reader sees of a run: HTML, figures, terminal table and model card, all made from its report alone."""
