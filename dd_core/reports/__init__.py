"""The report: everything that is known of a study as one page that needs nothing but itself.

Belongs here: what the page says and how it looks. A module finds out one part of it (findings, results, figures,
recipe, costs, provenance) from what is stored, ``page`` puts them together. Does not belong here: drawing figures
(``dd_core.figures``), or working out what a study found (``dd_core.analysis``).
"""
