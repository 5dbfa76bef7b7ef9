"""run, export and expand: which steps, in which order, and what may stop them."""
